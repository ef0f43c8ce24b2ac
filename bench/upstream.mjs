// The provider, as a Node process: `node upstream.mjs PORT`. Answers /NAME/v1/chat/completions with the static answer of
// that case (where there is no nginx), and /paced-CHUNKS-INTERVAL/v1/chat/completions with a timed stream.
import { createServer } from 'node:http'
import { cases, events } from './payloads.mjs'

const answers = new Map(cases.map(({ name, type, answer }) => [`/${name}/v1/chat/completions`, { type, answer }]))
const pacedPath = /^\/paced-(\d+)-(\d+)\/v1\/chat\/completions$/
const timed = new Map()
/** Streams by the millisecond in which their next event is due. */
const wheel = new Map()
let clock = now()

function now() {
  return Math.floor(performance.now())
}

const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
  request.resume()
  request.on('end', () => {
    const fixed = answers.get(request.url)
    if (fixed !== undefined) {
      // Without a length, as providers send their streams.
      const length = fixed.type === 'application/json' ? { 'content-length': fixed.answer.length } : {}
      response.writeHead(200, { 'content-type': fixed.type, ...length }).end(fixed.answer)
      return
    }
    if (request.url === '/v1/traces' || request.url === '/v1/metrics') {
      response.writeHead(200, { 'content-type': 'application/x-protobuf' }).end()
      return
    }
    const [, chunks, interval] = pacedPath.exec(request.url) ?? []
    if (chunks === undefined) {
      response.writeHead(request.url === '/health' ? 200 : 404).end()
      return
    }
    response.writeHead(200, { 'content-type': 'text/event-stream', 'transfer-encoding': 'chunked' })
    step({ response, frames: framesOf(Number(chunks)), interval: Number(interval), at: 0 })
  })
})

/**
 * The events of a stream, already in chunked framing, so that an event costs this process one small write. The role
 * comes together with the first word, as it does where a model thinks before it speaks, and the usage with [DONE].
 */
function framesOf(chunks) {
  let frames = timed.get(chunks)
  if (frames === undefined) {
    const list = events(chunks + 1)
    const first = Buffer.concat(list.splice(0, 2))
    const last = Buffer.concat(list.splice(-2))
    frames = [first, ...list, last].map(framed)
    timed.set(chunks, frames)
  }
  return frames
}

function framed(bytes) {
  return Buffer.concat([Buffer.from(`${bytes.length.toString(16)}\r\n`), bytes, Buffer.from('\r\n')])
}

function step(stream) {
  const { response, frames, interval } = stream
  if (response.destroyed || response.socket === null) return
  if (stream.at === 0) response.flushHeaders()
  response.socket.write(frames[stream.at++])
  if (stream.at === frames.length) {
    response.end()
    return
  }
  const due = Math.max(clock, now()) + interval
  const waiting = wheel.get(due)
  if (waiting === undefined) wheel.set(due, [stream])
  else waiting.push(stream)
}

function tick() {
  const until = now()
  while (clock <= until) {
    const streams = wheel.get(clock)
    wheel.delete(clock)
    clock++
    if (streams !== undefined) for (const stream of streams) step(stream)
  }
  setTimeout(tick, 1)
}

server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 }, tick)
