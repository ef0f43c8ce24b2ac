import type { ServerResponse } from 'node:http'
import type { FastifyReply } from 'fastify'
import { errorBody, InternalError, isGatewayError } from '../../schemas/errors.ts'
import type { Frames } from '../../schemas/frames.ts'
import type { Completed, Facts, Gateway } from '../../schemas/gateway.ts'
import { type Asker, headOf, writeHead } from './head.ts'

export interface SseOptions {
  /** Milliseconds of silence between heartbeats. */
  heartbeat: number
  /** Milliseconds without a token after which the headers leave all the same. */
  headersAfter: number
}

/** Proxies on the way are not to store, compress or collect what is meant to arrive as it comes. */
const unbuffered = ['cache-control', 'no-cache, no-transform', 'x-accel-buffering', 'no']
const terminator = 'data: [DONE]\n\n'

/**
 * Writes a stream as server-sent events. The headers leave with the first token, so that until then a fault is an
 * ordinary error answer; after `headersAfter` of silence they leave alone, heartbeats follow, and faults become events.
 */
export async function sendStream(
  reply: FastifyReply,
  answering: Promise<Completed>,
  caller: Asker,
  { http }: Gateway,
  options: SseOptions
): Promise<FastifyReply> {
  const response = reply.raw
  let open = false
  let heartbeat: NodeJS.Timeout | undefined
  let source: Extract<Completed, { stream: true }>['frames'] | undefined

  /** `length` is known when everything there is to say is said at once. */
  function start(facts: Facts | null, length?: number): void {
    const head = headOf(facts, caller, 'text/event-stream; charset=utf-8').concat(unbuffered)
    if (length !== undefined) head.push('content-length', String(length))
    writeHead(reply, http.fixed, head)
    open = true
  }

  const silence = setTimeout(() => {
    start(null)
    beat(response)
    heartbeat = setInterval(beat, options.heartbeat, response)
  }, options.headersAfter)

  try {
    const answer = await answering
    if (!answer.stream) throw new Error('A layer answered a stream request with a whole answer.')
    source = answer.frames
    let waiting: Uint8Array | null = null
    for (let read = await source.next(); !read.done; read = await source.next()) {
      clearTimeout(silence)
      const bytes = bytesOf(read.value)
      // The end is announced only when the call has settled, so what is said to be the last waits for it.
      if (read.value.last && waiting === null) {
        waiting = bytes
        continue
      }
      if (!open) start(answer.facts)
      if (waiting !== null) response.write(waiting)
      waiting = null
      response.write(bytes)
      if (heartbeat === undefined) heartbeat = setInterval(beat, options.heartbeat, response)
      else heartbeat.refresh()
      if (response.writableNeedDrain) await drained(response)
      if (response.destroyed) await source.return()
    }
    clearTimeout(silence)
    if (!open) start(answer.facts, (waiting?.length ?? 0) + terminator.length)
    if (waiting !== null) response.write(waiting)
    response.end(terminator)
  } catch (error) {
    clearTimeout(silence)
    void source?.return()
    if (!open) throw error
    const fault = isGatewayError(error) ? error : new InternalError({ cause: error })
    http.report(error, fault, caller)
    if (!response.destroyed) response.end(`data: ${JSON.stringify(errorBody(fault))}\n\n`)
  } finally {
    clearInterval(heartbeat)
  }
  return reply
}

function beat(response: ServerResponse): void {
  // A reader who takes nothing needs no sign of life.
  if (response.writableLength === 0) response.write(': heartbeat\n\n')
}

/** Resolves when the reader has taken what waits, or is gone. */
function drained(response: ServerResponse): Promise<void> {
  return new Promise(resolve => {
    const done = () => {
      response.off('drain', done)
      response.off('close', done)
      resolve()
    }
    response.on('drain', done)
    response.on('close', done)
    if (response.destroyed) done()
  })
}

function bytesOf(frames: Frames): Uint8Array {
  if (frames.raw !== null) return frames.raw
  let text = ''
  for (const chunk of frames) text += `data: ${JSON.stringify(chunk)}\n\n`
  return Buffer.from(text)
}
