import { fork } from 'node:child_process'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { chunks, flood, gate, type Received, type Reply, sse, startUpstream, turn, type Upstream } from '../upstream.ts'
import type { Memory } from './gateway.ts'

// What load.test.ts runs in short and in full.

const MB = 1024 * 1024
/** How much of its former memory a gateway may hold once everybody has left. */
const limit = 1.2

/** A gateway in a process of its own in front of a scripted upstream. */
export async function remote(t: Test) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const child = fork(fileURLToPath(new URL('./gateway.ts', import.meta.url)), [upstream.url], {
    execArgv: ['--expose-gc']
  })
  t.teardown(() => child.disconnect())
  const [url] = (await once(child, 'message')) as [string]
  const port = Number(new URL(url).port)

  async function memory(): Promise<Memory> {
    child.send('memory')
    const [answer] = (await once(child, 'message')) as [Memory]
    return answer
  }

  /** A connection that has asked for a stream; read it or do not. */
  function ask(said: string): Socket {
    const body = JSON.stringify({ model: 'test', stream: true, messages: [{ role: 'user', content: said }] })
    const socket = connect(port, '127.0.0.1')
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n` +
        `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
    )
    return socket
  }

  return { upstream, memory, ask }
}

async function read(socket: Socket): Promise<string> {
  let text = ''
  socket.setEncoding('utf8')
  for await (const piece of socket) text += piece
  return text
}

/** The text that the chunks of a raw answer say. */
function said(text: string): string {
  const contents = text.match(/"content":"(?:[^"\\]|\\.)*"/g) ?? []
  return contents.map(pair => JSON.parse(pair.slice(10))).join('')
}

/** Waits until the upstream has got rid of nothing for a while: whoever reads it has stopped. */
async function stalled(request: Received): Promise<number> {
  let still = 0
  for (let before = -1; still < 20; before = request.sent) {
    await turn()
    still = request.sent === before ? still + 1 : 0
  }
  return request.sent
}

/** A reader that takes a gulp only once everything between the upstream and itself has come to a halt. */
export async function slowReader(t: Test, size: number, gulp: number): Promise<void> {
  const { upstream, memory, ask } = await remote(t)
  upstream.script(sse(chunks('warm up')))
  await read(ask('warm up'))
  const idle = await memory()

  upstream.script(flood(size))
  const socket = ask('a flood')
  socket.pause()
  const request = await upstream.received(2)
  let got = 0
  let ahead = 0
  const gulps = Math.ceil(size / gulp)
  for (let number = 0; number < gulps && !socket.readableEnded; number++) {
    ahead = Math.max(ahead, (await stalled(request)) - got)
    const until = got + gulp
    for await (const piece of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      got += piece.length
      if (got >= until) break
    }
  }
  for await (const piece of socket as AsyncIterable<Buffer>) got += piece.length
  const { peak } = await memory()
  const grown = (peak - idle.rss) / MB
  t.comment(
    `${size / MB} MB: ${grown.toFixed(0)} MB above idle, the upstream at most ${(ahead / MB).toFixed(1)} MB ahead`
  )
  t.ok(got >= size, 'everything arrived')
  t.ok(grown < 150, `the gateway grew by ${grown.toFixed(0)} MB`)
  t.equal((await memory()).running, 0)
}

/** Many streams at a time: all are open at once, each gets its own words, and nothing of them stays. */
export async function manyStreams(t: Test, count: number, times = 1): Promise<void> {
  const { upstream, memory, ask } = await remote(t)
  const run = (streams: number) => together(t, upstream, ask, streams)
  // Once for what is made on first use: code, sockets, pools.
  await run(Math.min(count, 50))
  const before = await memory()
  for (let round = 0; round < times; round++) await run(count)
  // Connections that are kept for the next calls are wanted: the upstream closes them, as it would a little later.
  upstream.drop()
  await upstream.until(open => open.connections === 0)
  let after = await memory()
  // What is held by finalizers takes another round.
  for (let round = 0; round < 5 && after.held > before.held * limit; round++) after = await memory()
  const ratio = after.held / before.held
  t.comment(
    `${times} x ${count} streams: ${(before.held / MB).toFixed(1)} MB before, ${(after.held / MB).toFixed(1)} MB after, ` +
      `at most ${((after.peak - before.rss) / MB).toFixed(0)} MB above`
  )
  t.ok(ratio < limit, `heapUsed + external are ${ratio.toFixed(2)} times what they were`)
  t.equal(after.running, 0)
}

async function together(t: Test, upstream: Upstream, ask: (said: string) => Socket, count: number): Promise<void> {
  const door = gate()
  const all = gate()
  let open = 0
  upstream.script((request: Received): Reply => {
    if (++open === count) all.open()
    const words = String(request.json.messages?.[0]?.content)
    // The first half at once, the rest when everybody has come.
    const half = chunks(words).length >> 1
    return sse(chunks(words), { interval: index => (index === half ? door.promise : 0) })
  })
  const words = Array.from(
    { length: count },
    (_, index) => `stream ${index} says ü ${index * 7} and then ${index} again`
  )
  const answers = words.map(text => read(ask(text)))
  await all.promise
  door.open()
  const texts = await Promise.all(answers)
  const wrong = texts.filter((text, index) => said(text) !== words[index] || !text.includes('data: [DONE]\n\n'))
  t.same(wrong.slice(0, 3), [])
}

/** Streams that stand still, at either end, keep nobody else waiting. */
export async function isolation(t: Test, still: number, others: number): Promise<void> {
  const { upstream, memory, ask } = await remote(t)
  const door = gate()
  upstream.script((request: Received): Reply => {
    const text = String(request.json.messages?.[0]?.content)
    if (text.startsWith('silent')) return sse(chunks(text), { bodyDelay: door.promise })
    if (text.startsWith('unread')) return flood(8 * MB)
    return sse(chunks(text), { interval: null })
  })
  const silent = Array.from({ length: still }, (_, index) => ask(`silent ${index}`))
  const unread = Array.from({ length: still }, (_, index) => ask(`unread ${index}`).pause())
  await upstream.received(still * 2)
  const words = Array.from({ length: others }, (_, index) => `quick ${index} is served`)
  const texts = await Promise.all(words.map(text => read(ask(text))))
  t.same(texts.map(said), words)
  t.equal((await memory()).running, still * 2)

  door.open()
  t.same(
    (await Promise.all(silent.map(read))).map(said),
    Array.from({ length: still }, (_, index) => `silent ${index}`)
  )
  for (const socket of unread) {
    let got = 0
    for await (const piece of socket as AsyncIterable<Buffer>) got += piece.length
    if (got < 8 * MB) t.fail(`an unread stream lost bytes: ${got} arrived`)
  }
  t.equal((await memory()).running, 0)
}
