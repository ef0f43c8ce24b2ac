import { isDeepStrictEqual } from 'node:util'
import type { ChatRequest, Message, ToolCall } from '../schemas/chat.ts'

/** Something that a turn says. */
export type Item =
  | { readonly type: 'text'; readonly text: string }
  /** An http URL, or a data URL with the media type that the vendor is told. */
  | { readonly type: 'image'; readonly url: string }
  /** A data URL. */
  | { readonly type: 'file'; readonly url: string }
  /** `arguments` as a value: what was empty is `{}`. */
  | { readonly type: 'call'; readonly id: string; readonly name: string; readonly arguments: unknown }
  /** `call` is the id of the call that it answers; several in a row that answer the same are one. */
  | { readonly type: 'result'; readonly call: string; readonly text: string }

export interface Turn {
  readonly role: 'user' | 'assistant'
  readonly items: readonly Item[]
}

/**
 * What a request says, whatever its wire. A vendor's script reads its own wire into this as it stands there; what wires
 * may do differently without losing anything is the business of `lossBetween`.
 */
export interface Heard {
  /** In order, wherever they stood. */
  readonly system: readonly string[]
  readonly turns: readonly Turn[]
  /** Names, in order. */
  readonly tools: readonly string[]
  /** `auto`, `none`, `required` or the name of the tool to be called; not compared where a vendor's script leaves it out. */
  readonly choice?: string
}

/** What a request in OpenAI's wire says. */
export function heardIn(request: ChatRequest): Heard {
  const system: string[] = []
  const turns: Turn[] = []
  for (const message of request.messages) {
    const said = itemsOf(message.content)
    if (message.role === 'system' || message.role === 'developer') {
      for (const item of said) if (item.type === 'text') system.push(item.text)
    } else if (message.role === 'tool') {
      const call = message.tool_call_id ?? ''
      const texts = said.map(item => (item.type === 'text' ? item.text : ''))
      turns.push({ role: 'user', items: texts.map(text => ({ type: 'result', call, text })) })
    } else if (message.role === 'assistant') {
      const refusal = typeof message['refusal'] === 'string' ? itemsOf(message['refusal']) : []
      turns.push({ role: 'assistant', items: [...said, ...refusal, ...(message.tool_calls ?? []).map(callOf)] })
    } else turns.push({ role: 'user', items: said })
  }
  const tools = (request.tools ?? []).map(tool => tool.function?.name ?? '')
  return { system, turns, tools, choice: choiceOf(request['tool_choice']) }
}

function itemsOf(content: Message['content']): Item[] {
  if (typeof content === 'string') return [{ type: 'text', text: content }]
  return (content ?? []).map(part => {
    const { image_url: image, file, refusal } = part
    if (image !== undefined) return { type: 'image', url: typeof image === 'string' ? image : image.url }
    if (isObject(file)) return { type: 'file', url: String(file['file_data']) }
    return { type: 'text', text: typeof refusal === 'string' ? refusal : (part.text ?? '') }
  })
}

function choiceOf(choice: unknown): string {
  if (isObject(choice) && isObject(choice['function'])) return String(choice['function']['name'])
  return typeof choice === 'string' ? choice : 'auto'
}

function callOf({ id = '', function: called }: ToolCall): Item {
  return { type: 'call', id, name: called?.name ?? '', arguments: JSON.parse(called?.arguments || '{}') }
}

/**
 * What of a conversation did not arrive; null when all of it did. No loss is: turns of one role that are merged or split;
 * texts that are joined, with whatever white space where they meet or end; texts without a word that are left out; calls
 * that have other ids; results in another order before what else their turn says; results made up where there are none,
 * and tools where only their calls are known; no tools where none is to be called; a word of the user before a
 * conversation that begins without one.
 */
export function lossBetween(sent: Heard, heard: Heard): string | null {
  const wanted = settle(number(sent.turns))
  const answered = new Set(wanted.flatMap(turn => turn.items.map(item => (item.type === 'result' ? item.call : null))))
  const known = number(heard.turns).map(turn => ({
    ...turn,
    items: turn.items.filter(item => item.type !== 'result' || answered.has(item.call) || item.call.startsWith('?'))
  }))
  const got = settle(known)
  if (wanted[0]?.role !== 'user' && got[0]?.role === 'user' && got[0].items.every(item => item.type === 'text'))
    got.shift()
  return (
    lossOfSystem(sent.system, heard.system) ??
    lossOfTools(sent, heard) ??
    lossOfTurns(wanted, got) ??
    (wanted.length === got.length ? null : `${wanted.length} turns became ${got.length}`)
  )
}

/** Calls by their number instead of their id: ids may be the vendor's own, and the same again in a later turn. */
function number(turns: readonly Turn[]): Turn[] {
  const numbers = new Map<string, string>()
  let calls = 0
  return turns.map(turn => ({
    role: turn.role,
    items: turn.items.map(item => {
      if (item.type === 'result') return { ...item, call: numbers.get(item.call) ?? `?${item.call}` }
      if (item.type !== 'call') return item
      numbers.set(item.id, String(++calls))
      return { ...item, id: String(calls) }
    })
  }))
}

/** Neighbours of one role as one turn, without empty texts and turns, and in one order. */
function settle(turns: readonly Turn[]): Turn[] {
  const merged: Array<{ role: Turn['role']; items: Item[] }> = []
  for (const { role, items } of turns) {
    const said = items.filter(item => item.type !== 'text' || item.text.trim() !== '')
    if (said.length === 0) continue
    const last = merged.at(-1)
    if (last?.role === role) last.items.push(...said)
    else merged.push({ role, items: said })
  }
  return merged.map(({ role, items }) => ({ role, items: items.toSorted((a, b) => rank(a) - rank(b)) }))
}

/** Results come first, in the order of their calls; calls last. What else there is keeps its order. */
function rank(item: Item): number {
  if (item.type === 'result') return Number(item.call) - 1_000_000 || -1
  return item.type === 'call' ? 1 : 0
}

function lossOfSystem(sent: readonly string[], heard: readonly string[]): string | null {
  return isSaid(sent, heard) ? null : `the system's ${quote(sent)} became ${quote(heard)}`
}

function lossOfTools(sent: Heard, heard: Heard): string | null {
  const { tools, choice = 'auto' } = sent
  if (choice === 'none' && heard.tools.length === 0) return null
  const called = new Set(sent.turns.flatMap(turn => turn.items.map(item => (item.type === 'call' ? item.name : null))))
  const got = heard.tools.filter(name => tools.includes(name) || !called.has(name))
  if (!isDeepStrictEqual(got, tools)) return `the tools ${quote(tools)} became ${quote(heard.tools)}`
  // The only tool is required, or it is: the same.
  const same = new Set(tools.length === 1 ? [choice, choice.replace('required', tools[0]!)] : [choice])
  if (tools.length === 0 || heard.choice === undefined || same.has(heard.choice)) return null
  return `the choice ${quote(choice)} of a tool became ${quote(heard.choice)}`
}

function lossOfTurns(wanted: readonly Turn[], got: readonly Turn[]): string | null {
  for (const [index, turn] of wanted.entries()) {
    const where = `turn ${index + 1} of the ${turn.role}`
    const other = got[index]
    if (other?.role !== turn.role) return `${where} is ${other === undefined ? 'gone' : `one of the ${other.role}`}`
    const loss = lossOfItems(where, runs(turn.items), runs(other.items))
    if (loss !== null) return loss
  }
  return null
}

/** Texts that follow each other are one, also those of one result. */
type Run =
  | Exclude<Item, { type: 'text' | 'result' }>
  | { readonly type: 'text' | 'result'; readonly call: string | null; readonly texts: string[] }

function runs(items: readonly Item[]): Run[] {
  const all: Run[] = []
  for (const item of items) {
    if (item.type !== 'text' && item.type !== 'result') {
      all.push(item)
      continue
    }
    const call = item.type === 'result' ? item.call : null
    const last = all.at(-1)
    if (last !== undefined && 'texts' in last && last.call === call) last.texts.push(item.text)
    else all.push({ type: item.type, call, texts: [item.text] })
  }
  return all
}

function lossOfItems(where: string, wanted: readonly Run[], got: readonly Run[]): string | null {
  for (const [index, item] of wanted.entries()) {
    const other = got[index]
    const at = `${where}, ${item.type} ${index + 1}`
    if (other === undefined) return `${at} is gone: ${quote(item)}`
    if ('texts' in item && 'texts' in other) {
      const same = item.call === other.call && (isSaid(item.texts, other.texts) || isSameJson(item, other))
      if (!same) return `${at}: ${quote(item)} became ${quote(other)}`
    } else if (!isDeepStrictEqual(item, other)) return `${at}: ${quote(item)} became ${quote(other)}`
  }
  return got.length > wanted.length ? `${where} says more: ${quote(got.slice(wanted.length))}` : null
}

/** The same texts, one after the other, with nothing but white space before, between and after them. */
function isSaid(wanted: readonly string[], got: readonly string[]): boolean {
  const text = got.join('')
  let at = 0
  for (const piece of wanted.map(piece => piece.trim())) {
    while (!text.startsWith(piece, at) && /\s/.test(text.charAt(at))) at++
    if (!text.startsWith(piece, at)) return false
    at += piece.length
  }
  return text.slice(at).trim() === ''
}

/** A wire that takes objects only may have read the text of a result. */
function isSameJson(wanted: { call: string | null; texts: string[] }, got: { texts: string[] }): boolean {
  if (wanted.call === null) return false
  try {
    const value: unknown = JSON.parse(wanted.texts.join(''))
    return isObject(value) && isDeepStrictEqual(value, JSON.parse(got.texts.join('')))
  } catch {
    return false
  }
}

function quote(value: unknown): string {
  const text = JSON.stringify(value)
  return text.length > 600 ? `${text.slice(0, 600)}…` : text
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}
