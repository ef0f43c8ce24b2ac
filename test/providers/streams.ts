import type { ChatCompletionChunk, CompletionUsage } from '../../schemas/chat.ts'

// Random event streams, and a parser of them that is written from the specification and from nothing else.

type Random = () => number

const words = [
  'Hello',
  'Zürich',
  '東京',
  '🙂',
  '[DONE]',
  'data: [DONE]',
  '\n\ndata: [DONE]\n\n',
  '"usage":{}',
  '\\"error\\":1'
]
const usage = { prompt_tokens: 9, completion_tokens: 5, total_tokens: 14 }

function pick<T>(random: Random, all: readonly T[]): T {
  return all[Math.floor(random() * all.length)]!
}

/** One event's data, as a value or as text that is not JSON. */
const parts = {
  role: () => chunk({ role: 'assistant', content: '' }),
  text: (random: Random) => chunk({ content: pick(random, words) }),
  more: (random: Random) => chunk({ content: pick(random, words).repeat(20) }),
  tool: (random: Random) =>
    chunk({ tool_calls: [{ index: 0, function: { arguments: `{"a":"${pick(random, ['x', '\\"'])}` } }] }),
  nullUsage: (random: Random) => ({ ...chunk({ content: pick(random, words) }), usage: null }),
  continuous: (random: Random) => ({
    ...chunk({ content: pick(random, words) }),
    usage: { ...usage, total_tokens: 15 }
  }),
  finish: (random: Random) => chunk({}, pick(random, ['stop', 'length', ''])),
  usage: () => ({ choices: [], usage }),
  azure: () => ({ choices: [], prompt_filter_results: [{ error: null }] }),
  nested: () => ({ choices: [{ index: 0, delta: { content: 'x' } }], x_groq: { usage } }),
  foreign: (random: Random) => pick<unknown>(random, [{}, [], null, 1, 'text', { usage: 5 }, { choices: [1] }]),
  garbage: (random: Random) =>
    new Text(pick(random, ['', '{', '{"choices":[', 'ping', '[DONE] ', '[DON', '"usage": {']))
}

class Text {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

function chunk(delta: object, reason: string | null = null) {
  return { id: 'c', choices: [{ index: 0, delta, finish_reason: reason }] }
}

/** A stream of 0 to 12 events in any line ends, with comments, other fields, errors and ends of all kinds. */
export function randomStream(random: Random): Buffer {
  const ends = random() < 0.5 ? [pick(random, ['\n', '\r\n', '\r'])] : ['\n', '\r\n', '\r']
  const end = () => pick(random, ends)
  let text = random() < 0.1 ? '\ufeff' : ''
  for (let count = Math.floor(random() * 12); count > 0; count--) {
    if (random() < 0.1) text += `: ping${end()}`
    if (random() < 0.05) text += end()
    if (random() < 0.1) text += `${pick(random, ['id: 1', 'event: x', 'retry: 5', 'id', ':'])}${end()}`
    if (random() < 0.04)
      text += dataLines(random, { ...chunk({}), error: pick<unknown>(random, ['no', { code: 429 }]) }, end)
    else if (random() < 0.9) text += dataLines(random, pick(random, Object.values(parts))(random), end)
    // A CR and a LF would be one line end, and no blank line.
    const blank = end()
    text += text.endsWith('\r') && blank === '\n' ? '\r' : blank
  }
  if (random() < 0.5)
    text += `data:${pick(random, ['', ' '])}[DONE]${end()}${end()}${pick(random, ['', 'data: late\n\n'])}`
  const bytes = Buffer.from(text)
  return random() < 0.3 ? bytes.subarray(0, Math.floor(random() * bytes.length)) : bytes
}

function dataLines(random: Random, value: unknown, end: () => string): string {
  const space = () => pick(random, ['', ' '])
  if (value instanceof Text) return `data:${space()}${value.text}${end()}`
  const lines = JSON.stringify(value, null, pick(random, [0, 0, 0, 1, 2])).split('\n')
  return lines.map(line => `data:${space()}${line}${end()}`).join('')
}

interface Reference {
  done: boolean
  /** The bytes up to the terminator or the error. */
  raw: Buffer
  /** The same without the events that only report usage. */
  kept: Buffer
  chunks: ChatCompletionChunk[]
  usage: CompletionUsage | null
  error: unknown
  finished: boolean
  hasToken: boolean
  hasData: boolean
}

/** Reads a whole stream. A last event without its blank line gets one, unless it is cut in the middle. */
export function reference(input: Buffer): Reference {
  const last = eventsOf(input).at(-1)
  const cut = last?.open && last.data !== null && last.data !== '[DONE]' && parse(last.data) === undefined
  const whole = cut ? input.subarray(0, last.start) : input
  const bytes = last?.open && !cut ? Buffer.concat([whole, Buffer.from('\n\n')]) : whole
  const found: Reference = {
    done: false,
    raw: bytes,
    kept: bytes,
    chunks: [],
    usage: null,
    error: undefined,
    finished: false,
    hasToken: false,
    hasData: false
  }
  const kept: Buffer[] = []
  for (const { start, end, data } of eventsOf(bytes)) {
    const value = data === null ? undefined : parse(data)
    const error = errorOf(value)
    if (data === '[DONE]' || error) {
      found.done = data === '[DONE]'
      found.error = error || undefined
      found.raw = bytes.subarray(0, start)
      break
    }
    if (data !== null) found.hasData = true
    const usageOnly = isChunk(value) && value.choices.length === 0 && Boolean(value.usage)
    if (!usageOnly) kept.push(bytes.subarray(start, end))
    if (!isChunk(value)) continue
    found.chunks.push(value)
    if (typeof value.usage === 'object' && value.usage !== null) found.usage = value.usage
    for (const choice of value.choices) {
      if (choice.finish_reason) found.finished = true
      const said = Object.entries(choice.delta ?? {}).some(
        ([key, part]) => key !== 'role' && part !== null && part !== ''
      )
      if (choice.finish_reason || said) found.hasToken = true
    }
  }
  found.kept = Buffer.concat(kept)
  return found
}

interface Event {
  start: number
  end: number
  data: string | null
  /** It lacks its blank line. */
  open: boolean
}

/** Lines end with LF, CRLF or CR; a blank line ends an event; `data` lines of one event are joined. */
function eventsOf(bytes: Buffer): Event[] {
  const events: Event[] = []
  let data: string[] | null = null
  let start = 0
  let at = bytes.subarray(0, 3).equals(Buffer.from('\ufeff')) ? 3 : 0
  while (at < bytes.length) {
    let end = at
    while (end < bytes.length && bytes[end] !== 10 && bytes[end] !== 13) end++
    const line = bytes.subarray(at, end).toString()
    at = end + (bytes[end] === 13 && bytes[end + 1] === 10 ? 2 : 1)
    if (line === '') {
      events.push({ start, end: Math.min(at, bytes.length), data: data === null ? null : data.join('\n'), open: false })
      data = null
      start = at
      continue
    }
    const colon = line.indexOf(':')
    const field = colon === -1 ? line : line.slice(0, colon)
    const value = colon === -1 ? '' : line.slice(colon + 1)
    if (field === 'data') data = [...(data ?? []), value.startsWith(' ') ? value.slice(1) : value]
  }
  if (start < bytes.length) {
    events.push({ start, end: bytes.length, data: data === null ? null : data.join('\n'), open: true })
  }
  return events
}

function parse(data: string): unknown {
  try {
    return JSON.parse(data)
  } catch {
    return undefined
  }
}

function isChunk(value: unknown): value is ChatCompletionChunk {
  if (typeof value !== 'object' || value === null) return false
  const { choices } = value as { choices?: unknown }
  return Array.isArray(choices) && choices.every(choice => typeof choice === 'object' && choice !== null)
}

function errorOf(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return undefined
  const { error } = value as { error?: unknown }
  return error || (isChunk(value) ? value.choices.find(choice => choice['error'])?.['error'] : undefined)
}
