import { spokenKeys } from '../../schemas/frames.ts'

/** Up to the first character of a text that is not empty. */
const saying = new RegExp(`"(?:${spokenKeys.join('|')})"\\s*:\\s*"(?!")`, 'g')

/** How much these events say. */
export interface Said {
  pieces: number
  bytes: number
}

/**
 * Finds texts without parsing. No line end stands inside JSON text, so texts without one between them are of one event;
 * there the same words under a second name, as OpenRouter sends its reasoning, count once.
 */
export function saidIn(text: string): Said {
  const said = { pieces: 0, bytes: 0 }
  let before = ''
  let end = -1
  let lineFeed = -1
  saying.lastIndex = 0
  while (saying.test(text)) {
    const start = saying.lastIndex
    const isNext = end === -1 || lineFeed < start || text.slice(end, start).includes('\r')
    end = closingQuote(text, start)
    saying.lastIndex = end + 1
    const words = text.slice(start, end)
    if (isNext) said.pieces++
    else if (words === before) continue
    before = words
    said.bytes += words.includes('\\') ? unescapedBytes(words) : words.length
    if (lineFeed < end) lineFeed = following('\n', text, end)
  }
  return said
}

function following(character: string, text: string, from: number): number {
  const at = text.indexOf(character, from)
  return at === -1 ? text.length : at
}

/** The first quote from a position on that no backslash escapes. */
function closingQuote(text: string, from: number): number {
  for (let at = text.indexOf('"', from); at !== -1; at = text.indexOf('"', at + 1)) {
    let slash = at
    while (slash > from && text[slash - 1] === '\\') slash--
    if ((at - slash) % 2 === 0) return at
  }
  return text.length
}

/** Bytes of a JSON text once its escapes are what they stand for. */
function unescapedBytes(words: string): number {
  let bytes = words.length
  for (let at = words.indexOf('\\'); at !== -1; at = words.indexOf('\\', at + (words[at + 1] === 'u' ? 6 : 2))) {
    bytes -= words[at + 1] === 'u' ? 6 - utf8Length(Number.parseInt(words.slice(at + 2, at + 6), 16)) : 1
  }
  return bytes
}

/** Bytes of a UTF-16 unit; a half of a pair takes half of its four. */
function utf8Length(unit: number): number {
  if (unit < 0x80) return 1
  return unit < 0x8_00 || (unit >= 0xd8_00 && unit < 0xe0_00) ? 2 : 3
}
