import { UpstreamError } from '../../../schemas/errors.ts'
import { isRecord } from '../../../schemas/reader.ts'
import type { Redact } from '../../faults.ts'
import { dataReader, EventFrames } from '../../sse/index.ts'
import type { Step, StreamReader } from '../../stream.ts'
import type { Reply } from '../../upstream.ts'
import { type Expected, faultOf, refusalOf, tierOf, toFinishReason, toUsage } from './answer.ts'
import { isThought, type Thought } from './messages.ts'

/** A block of the message in the making. */
interface Open {
  /** `json`: the made-up tool, whose arguments are the text. `held`: text that counts only if that tool is not called. */
  readonly kind: 'text' | 'held' | 'thinking' | 'tool' | 'json' | 'other'
  /** Which of the calls it is. */
  readonly call: number
  readonly thought: { type: 'thinking'; thinking: string; signature: string } | null
  /** What stands for its arguments until they come in pieces. */
  readonly input: unknown
  said: boolean
  closed: boolean
}

const deltaStart = '{"type":"content_block_delta","index":'
/** How the deltas of a block go on, as the vendor writes them. */
const deltaStarts: Readonly<Record<Open['kind'], string>> = {
  text: ',"delta":{"type":"text_delta","text":"',
  held: ',"delta":{"type":"text_delta","text":"',
  thinking: ',"delta":{"type":"thinking_delta","thinking":"',
  tool: ',"delta":{"type":"input_json_delta","partial_json":"',
  json: ',"delta":{"type":"input_json_delta","partial_json":"',
  other: ',"delta":{"type":"input_json_delta","partial_json":"'
}
/** A text in JSON: between its quotes no control character, and no quote or backslash by itself. */
const literal = /^"[ !#-[\]-\uffff]*(?:\\(?:["\\/bfnrt]|u[\dA-Fa-f]{4})[ !#-[\]-\uffff]*)*"$/
/** Longer ones are rare, and parsed. */
const longestLiteral = 4_096
const deltaEnd = /^ *\} *\} *$/

/** Reads a stream of Anthropic's events into OpenAI's. */
export function messageReader(
  headers: Reply['headers'],
  maxEvent: number,
  redact: Redact,
  expected: Expected
): StreamReader {
  const events = dataReader(maxEvent)
  const blocks = new Map<number, Open>()
  const thoughts: Thought[] = []
  const calls: string[] = []
  const usage: Record<string, unknown> = {}
  /** What every event begins with, once the message has begun. */
  let before = ''
  let stop: Record<string, unknown> = {}
  let held = ''
  let answered = false
  /** Events of this read. */
  let text = ''
  let over = false
  let fault: Error | null = null

  function step(datas: readonly string[]): Step {
    for (const data of datas) {
      if (over) break
      if (!takeDelta(data)) take(data)
    }
    const bytes = Buffer.from(text)
    // Text of nothing but ASCII is its own latin1.
    const last = over && fault === null
    const frames = text === '' ? null : new EventFrames(bytes, last, bytes.length === text.length ? text : null)
    text = ''
    return { frames, done: over, fault }
  }

  /** Nearly all events are deltas in one order of their fields: their JSON goes on as it is. False for all others. */
  function takeDelta(data: string): boolean {
    if (!data.startsWith(deltaStart)) return false
    const comma = data.indexOf(',', deltaStart.length)
    const block = blocks.get(Number(data.slice(deltaStart.length, comma)))
    if (block === undefined) return false
    const start = deltaStarts[block.kind]
    if (!data.startsWith(start, comma)) return false
    const from = comma + start.length
    const end = data.lastIndexOf('"')
    if (end <= from || end - from > longestLiteral || !deltaEnd.test(data.slice(end + 1))) return false
    const said = data.slice(from - 1, end + 1)
    if (!literal.test(said)) return false
    say(block, said)
    return true
  }

  function take(data: string): void {
    let event: unknown
    try {
      event = JSON.parse(data)
    } catch {
      // The error of JSON.parse quotes what it parses.
      fail(new UpstreamError('an event of its stream is not JSON.'))
    }
    if (!isRecord(event)) return
    const { type, message, content_block: block, delta, usage: counts } = event
    const index = Number(event['index'])
    const known = blocks.get(index)
    if (type === 'error') fail(faultOf(0, event, headers, redact))
    else if (type === 'message_start') begin(isRecord(message) ? message : {})
    else if (before === '') {
      if (/^(?:content_block|message)_/.test(String(type)))
        fail(new UpstreamError('its stream does not begin with a message.'))
    } else if (type === 'content_block_start' && isRecord(block)) open(index, block)
    else if (type === 'content_block_delta' && isRecord(delta) && known) grow(known, delta)
    else if (type === 'content_block_stop' && known) close(known)
    else if (type === 'message_delta') {
      if (isRecord(delta)) stop = { ...stop, ...delta }
      report(counts)
    } else if (type === 'message_stop') finish()
  }

  function fail(error: Error): void {
    fault = error
    over = true
  }

  function begin(message: Record<string, unknown>): void {
    if (before !== '') return
    report(message['usage'])
    const head = {
      id: String(message['id']),
      object: 'chat.completion.chunk',
      created: Math.floor(Date.now() / 1_000),
      model: String(message['model'])
    }
    before = `data: ${JSON.stringify(head).slice(0, -1)},"choices":[`
    emit('"role":"assistant","content":"","refusal":null')
  }

  /** Counts are totals so far; null is none. */
  function report(counts: unknown): void {
    if (!isRecord(counts)) return
    for (const [name, count] of Object.entries(counts)) if (count !== null) usage[name] = count
  }

  function emit(delta: string, reason = 'null'): void {
    text += `${before}{"index":0,"delta":{${delta}},"finish_reason":${reason}}]}\n\n`
  }

  function open(index: number, block: Record<string, unknown>): void {
    const { type, name, id, input } = block
    const json = type === 'tool_use' && expected.jsonTool !== null && name === expected.jsonTool
    const started = { call: calls.length, thought: null, input, said: false, closed: false }
    if (json) {
      blocks.set(index, { ...started, kind: answered ? 'other' : 'json' })
      answered = true
    } else if (type === 'tool_use') {
      const call = { index: calls.length, id, type: 'function', function: { name, arguments: '' } }
      calls.push(String(id))
      blocks.set(index, { ...started, kind: 'tool' })
      emit(`"tool_calls":[${JSON.stringify(call)}]`)
    } else if (type === 'text') {
      const own: Open = { ...started, kind: expected.jsonTool === null ? 'text' : 'held' }
      blocks.set(index, own)
      grow(own, block)
    } else if (type === 'thinking') {
      const thought = { type: 'thinking' as const, thinking: '', signature: '' }
      thoughts.push(thought)
      const own: Open = { ...started, kind: 'thinking', thought }
      blocks.set(index, own)
      grow(own, block)
    } else if (isThought(block)) thoughts.push(block)
  }

  function grow(block: Open, { text, thinking, signature, partial_json: json }: Record<string, unknown>): void {
    const { kind, thought } = block
    const said = kind === 'thinking' ? thinking : kind === 'text' || kind === 'held' ? text : json
    if (typeof said === 'string' && said !== '') say(block, JSON.stringify(said))
    if (thought !== null && typeof signature === 'string') thought.signature += signature
  }

  /** @param said as JSON */
  function say(block: Open, said: string): void {
    const { kind } = block
    block.said = true
    if (kind === 'text' || kind === 'json') emit(`"content":${said}`)
    else if (kind === 'tool') emit(`"tool_calls":[{"index":${block.call},"function":{"arguments":${said}}}]`)
    else if (kind === 'held') held += JSON.parse(said)
    else if (block.thought !== null) {
      block.thought.thinking += JSON.parse(said)
      emit(`"reasoning_content":${said}`)
    }
  }

  /** A call without arguments has none in pieces either; some vendors give all of them at its start. */
  function close(block: Open): void {
    if (block.closed) return
    block.closed = true
    if (block.said || (block.kind !== 'tool' && block.kind !== 'json')) return
    const input = JSON.stringify(block.input ?? {})
    say(block, JSON.stringify(input))
  }

  function finish(): void {
    for (const block of blocks.values()) close(block)
    if (held !== '' && !answered) emit(`"content":${JSON.stringify(held)}`)
    const { stop_reason: reason, stop_details: details } = stop
    const refusal = refusalOf(reason, details)
    const signed = thoughts.filter(isThought)
    if (signed.length > 0 && calls.length > 0) expected.keep(calls, signed)
    const last = {
      ...(refusal === null ? {} : { refusal }),
      ...(signed.length === 0 ? {} : { thinking_blocks: signed })
    }
    emit(JSON.stringify(last).slice(1, -1), `"${toFinishReason(reason, calls.length > 0)}"`)
    const counted = toUsage(usage)
    if (counted !== null) {
      text += `${before}],${JSON.stringify({ usage: counted, ...tierOf(usage) }).slice(1)}\n\n`
    }
    over = true
  }

  return {
    read: bytes => step(events.read(bytes)),
    end() {
      const last = step(events.end())
      if (over) return last
      const cut = new UpstreamError('its stream ended before the answer was complete.')
      return { frames: last.frames, done: true, fault: cut }
    }
  }
}
