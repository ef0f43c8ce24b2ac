import { randomUUID } from 'node:crypto'
import { canonical } from '../../schemas/canonical.ts'
import { spokenKeys } from '../../schemas/frames.ts'

/** Nobody can have sent it, so nothing else can look like it. */
const mark = randomUUID()
/** Up to a text that differs from chunk to chunk. OpenAI fills the last one with noise. */
const slot = new RegExp(`"(${spokenKeys.join('|')}|obfuscation)"\\s*:\\s*(?=")`, 'g')
/** A text that its canonical form leaves as it is: no escape that could be written in another way, no half of a pair. */
const literal = /"(?:[ !#-[\]-\ud7ff\ue000-\uffff]|\\[bfnrt"\\])*"/y
/** Longer chunks are rare, and the search of a text is not made for them. */
const longest = 4_096
const mostSlots = 4

/**
 * What the chunks of a stream have in common. Most differ from the one before in a text or two, and then parsing and sorting
 * tell nothing new: putting one text of JSON in the place of another changes the value in its place, and nothing else.
 */
export class Pattern {
  /** What stands around the texts: as it comes, and in the canonical form. */
  #pieces: readonly string[]
  #canonical: readonly string[]
  /** Which text comes where in the canonical form. */
  #order: readonly number[]
  #texts: string[] = []

  constructor(pieces: readonly string[], canonical: readonly string[], order: readonly number[]) {
    this.#pieces = pieces
    this.#canonical = canonical
    this.#order = order
  }

  /** The canonical form of a chunk; null: it is of another kind. */
  canonicalOf(text: string): string | null {
    if (text.length > longest) return null
    let at = 0
    for (let index = 0; index < this.#pieces.length; index++) {
      const piece = this.#pieces[index]!
      // Compared as memory, which startsWith does character by character.
      if (text.slice(at, at + piece.length) !== piece) return null
      at += piece.length
      if (index === this.#order.length) break
      const end = literalEnd(text, at)
      if (end === -1) return null
      this.#texts[index] = text.slice(at, end)
      at = end
    }
    return at === text.length ? this.#written() : null
  }

  #written(): string {
    let written = this.#canonical[0]!
    for (let index = 0; index < this.#order.length; index++) {
      written += this.#texts[this.#order[index]!]! + this.#canonical[index + 1]!
    }
    return written
  }
}

/** @param text the JSON of a chunk without fields of ours; null: no two of its kind would have enough in common */
export function patternOf(text: string): Pattern | null {
  const pieces = text.length > longest ? [] : piecesOf(text)
  if (pieces.length < 2 || pieces.length > mostSlots + 1) return null
  const marks = pieces.slice(1).map((_, index) => `"${mark} ${index}"`)
  const marked = pieces.reduce((before, piece, index) => `${before}${marks[index - 1]}${piece}`)
  const form = canonical(JSON.parse(marked))
  // A text may be gone: a second field of its name has replaced it.
  if (marks.some(one => form.split(one).length !== 2)) return null
  const order = marks
    .map((_, index) => index)
    .sort((one, other) => form.indexOf(marks[one]!) - form.indexOf(marks[other]!))
  return new Pattern(pieces, form.split(new RegExp(`"${mark} \\d"`)), order)
}

/** What stands around its texts; one piece where nothing is said. */
function piecesOf(text: string): string[] {
  const pieces: string[] = []
  let from = 0
  let says = false
  slot.lastIndex = 0
  for (let match = slot.exec(text); match !== null; match = slot.exec(text)) {
    const end = literalEnd(text, slot.lastIndex)
    if (end === -1) continue
    pieces.push(text.slice(from, slot.lastIndex))
    says ||= match[1] !== 'obfuscation'
    from = end
    slot.lastIndex = end
  }
  return says ? [...pieces, text.slice(from)] : []
}

function literalEnd(text: string, at: number): number {
  literal.lastIndex = at
  return literal.test(text) ? literal.lastIndex : -1
}
