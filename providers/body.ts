import { randomUUID } from 'node:crypto'

/** A JSON text that is made while it is sent, because long strings are in it: images, sounds, documents. */
export interface LongBody {
  /** Of the whole text in UTF-8. */
  readonly bytes: number
  /** The text from its beginning. A long string comes in slices, which V8 makes without a copy. */
  pieces(): Iterable<string>
}

/** Strings above this many characters are worth the trouble. */
const long = 262_144
const slice = 65_536
/** How deep below a list of parts its long strings are: those in a document in a tool's result are the deepest. */
const deepest = 6

/** The JSON of a request. What it says is what `JSON.stringify` makes of it, in either form. */
export function bodyOf(value: object): string | LongBody {
  if (!hasLong(turnsOf(value))) return JSON.stringify(value)
  const strings: string[] = []
  // Nobody can have sent it, so nothing else can look like it.
  const mark = randomUUID()
  const rest = JSON.stringify(value, (_name, part: unknown) => {
    if (typeof part !== 'string' || part.length <= long || !isVerbatim(part)) return part
    strings.push(part)
    return mark
  })
  if (strings.length === 0) return rest
  const between = rest.split(mark)
  let bytes = Buffer.byteLength(rest) - strings.length * mark.length
  for (const text of strings) bytes += text.length
  return { bytes, pieces: () => piecesOf(between, strings) }
}

/** The conversation, as the wires call it. Long strings elsewhere are left to JSON.stringify. */
function turnsOf(value: { messages?: unknown; contents?: unknown }): unknown {
  return value.messages ?? value.contents
}

/** Runs for every request, so it looks at no more than it has to: not at calls of tools, and not at fields of text. */
function hasLong(turns: unknown): boolean {
  if (!Array.isArray(turns)) return false
  for (const turn of turns) {
    const parts: unknown = turn?.content ?? turn?.parts
    if (typeof parts === 'object' && holdsLong(parts, deepest)) return true
  }
  return false
}

function holdsLong(value: unknown, depth: number): boolean {
  if (typeof value === 'string') return value.length > long
  if (typeof value !== 'object' || value === null || depth === 0) return false
  for (const part of Array.isArray(value) ? value : Object.values(value)) if (holdsLong(part, depth - 1)) return true
  return false
}

/** ASCII that JSON writes as it is: one byte a character, and no place where a slice would be wrong. */
function isVerbatim(text: string): boolean {
  return (
    Buffer.byteLength(text) === text.length && !text.includes('"') && !text.includes('\\') && !/[^ -\uffff]/.test(text)
  )
}

function* piecesOf(between: readonly string[], strings: readonly string[]): Iterable<string> {
  for (const [index, text] of between.entries()) {
    yield text
    const inner = strings[index] ?? ''
    for (let at = 0; at < inner.length; at += slice) yield inner.slice(at, at + slice)
  }
}
