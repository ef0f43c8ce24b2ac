import { createCutter, eventAround, eventsIn, lastBoundary } from './events.ts'
import { EventFrames } from './frames.ts'

export { EventFrames }

const terminator = '[DONE]'
/** As nearly everybody writes it, with the blank line before it. */
const wholeTerminator = '\n\ndata: [DONE]\n\n'

/** What arrived with one network read: whole events, and whether the stream said that it is over. */
export interface Read {
  readonly frames: EventFrames | null
  readonly done: boolean
}

/** Cuts a stream of bytes into reads of whole events; bytes may be split anywhere. */
export interface EventReader {
  /** @throws UpstreamError when one event grows over the limit */
  read(bytes: Buffer): Read
  /** What is left when the provider closes: an event that lacks its blank line still counts, one cut in the middle does not. */
  end(): Read
}

const nothing: Read = { frames: null, done: false }

/** @param limit the most bytes that one event may have */
export function eventReader(limit: number): EventReader {
  const cutter = createCutter(limit)

  function read(bytes: Buffer): Read {
    const whole = cutter.cut(bytes)
    return whole === null ? nothing : take(whole)
  }

  function end(): Read {
    const rest = cutter.rest()
    if (rest === null) return nothing
    // Now nothing can follow that makes a CRLF of a CR at the end.
    if (lastBoundary(Buffer.concat([rest, Buffer.from(' ')])) === rest.length) return take(rest)
    const read = take(Buffer.concat([rest, Buffer.from('\n\n')]))
    return read.frames === null || read.frames.isReadable ? read : nothing
  }

  return { read, end }
}

/** Takes the data of events out of a stream that is not OpenAI's; bytes may be split anywhere. */
export interface DataReader {
  /** The data of each event that these bytes complete. @throws UpstreamError when one event grows over the limit */
  read(bytes: Buffer): string[]
  /** The same for an event that lacks its blank line at the end of the stream, or for JSON that is no event at all. */
  end(): string[]
}

/**
 * @param limit the most bytes that one event may have
 * @param encoding `latin1` gives every byte as a character, for those who hand on most of it as it is
 */
export function dataReader(limit: number, encoding: 'utf8' | 'latin1' = 'utf8'): DataReader {
  const cutter = createCutter(limit)

  function datasOf(whole: Buffer | null): string[] {
    if (whole === null) return []
    const datas: string[] = []
    const events = eventsIn(encoding === 'utf8' ? whole : null, whole.toString('latin1'))
    for (const { data } of events) if (data !== null && data !== '') datas.push(data)
    return datas
  }

  return {
    read: bytes => datasOf(cutter.cut(bytes)),
    end() {
      const rest = cutter.rest()
      const datas = datasOf(rest)
      // Google, for one, breaks off with an error that is no event.
      const bare = datas.length === 0 && rest !== null ? rest.toString(encoding).trim() : ''
      return /^[[{]/.test(bare) ? [bare] : datas
    }
  }
}

/** Takes the terminator off, if it is here; what follows it is nobody's. */
function take(bytes: Buffer): Read {
  const text = bytes.toString('latin1')
  for (let at = text.indexOf(terminator); at !== -1; at = text.indexOf(terminator, at + 1)) {
    const start = text.startsWith('data: ', at - 6) ? at - 6 : at - 5
    if (text.startsWith(wholeTerminator, start - 2)) return ended(bytes, text, start)
    if (!text.startsWith('data:', start) || !isLineEnd(text[at + terminator.length])) continue
    const event = eventAround(bytes, text, at)
    if (event?.data !== terminator) continue
    return ended(bytes, text, event.start)
  }
  return { frames: new EventFrames(bytes, false, text), done: false }
}

/** What came before the terminator. */
function ended(bytes: Buffer, text: string, at: number): Read {
  if (at === 0) return { frames: null, done: true }
  return { frames: new EventFrames(bytes.subarray(0, at), true, text.slice(0, at)), done: true }
}

/** A neighbour of a line: a line end, or nothing at all. */
function isLineEnd(character: string | undefined): boolean {
  return character === '\n' || character === '\r' || character === undefined
}
