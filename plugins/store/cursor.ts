import { InvalidRequest } from '../../schemas/errors.ts'

/** After an ended call. */
export interface Place {
  readonly time: number
  readonly seq: number
}

/** After a running call; `seq` is the highest that there was then. */
export interface OpenPlace extends Place {
  readonly id: string
}

const form = /^(-?\d{1,16})\.(\d{1,16})(?:\.(.+))?$/s

/** `time.seq`, or `time.seq.id`. */
export function cursorOf(place: Place | OpenPlace): string {
  return `${place.time}.${place.seq}${'id' in place ? `.${place.id}` : ''}`
}

/** @throws InvalidRequest */
export function parseCursor(cursor: string): Place | OpenPlace {
  const [, time, seq, id] = form.exec(cursor) ?? []
  const place = { time: Number(time), seq: Number(seq) }
  if (!Number.isSafeInteger(place.time) || !Number.isSafeInteger(place.seq)) {
    throw new InvalidRequest('`after` is no place in this list: give the `next` of the page before.')
  }
  return id === undefined ? place : { ...place, id }
}
