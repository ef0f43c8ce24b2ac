import { once } from 'node:events'
import { createServer } from 'node:net'
import type { FastifyInstance } from 'fastify'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import WebSocket from 'ws'
import type { ModelGatewayOptions } from '../../../app.ts'
import { build } from '../../helper.ts'
import type { TestRedis } from '../../services/index.ts'

export const token = 'the-token-of-the-operator'
export const admin = { authorization: `Bearer ${token}` }

/** A gateway that listens, with the echo behind the model `test`. */
export async function start(
  t: Test,
  options: ModelGatewayOptions = {}
): Promise<{ app: FastifyInstance; url: string }> {
  const app = await build(t, {
    providers: { echo: { type: 'echo', words: 3 } },
    models: { test: { retries: 0, targets: [{ provider: 'echo', model: 'echo' }] } },
    ...options,
    plugins: {
      auth: { adminToken: token, anonymousTenant: 'public' },
      rateLimit: false,
      budgets: { unpriced: 'allow' },
      ...options.plugins
    }
  })
  const url = await app.listen({ host: '127.0.0.1', port: 0 })
  return { app, url }
}

export type Said = Record<string, unknown> & { event_id: string; event_type: string }

/** Whoever listens, on either transport. */
export interface Ear {
  /** Everything so far, also messages about the stream itself. */
  readonly heard: Said[]
  /** Events without those. */
  readonly events: Said[]
  /** Resolves with the first message that fits, also one that was there already. */
  until(fits: (said: Said) => boolean): Promise<Said>
  /** Resolves when there are so many events. */
  count(events: number): Promise<void>
  readonly closed: Promise<{ code: number; reason: string }>
  close(): void
}

export const isReady = ({ event_type }: Said) => /^gateway\.events\.(ready|gap)$/.test(event_type)
const isNotice = ({ event_type }: Said) => /^gateway\.events\.(ready|gap|end)$/.test(event_type)

function createEar(closed: Ear['closed'], close: () => void): Ear & { hear(said: Said): void } {
  const heard: Said[] = []
  let waiting: Array<{ fits: () => unknown; resolve: () => void }> = []
  const events = () => heard.filter(said => !isNotice(said))
  function wait(fits: () => unknown): Promise<void> {
    if (fits()) return Promise.resolve()
    return new Promise((resolve, reject) => {
      waiting.push({ fits, resolve })
      void closed.then(({ code, reason }) => reject(new Error(`It was closed: ${code} ${reason}`)))
    })
  }
  return {
    heard,
    get events() {
      return events()
    },
    async until(fits) {
      await wait(() => heard.some(fits))
      return heard.find(fits)!
    },
    count: events => wait(() => heard.filter(said => !isNotice(said)).length >= events),
    closed,
    close,
    hear(said) {
      heard.push(said)
      const [now, later] = [waiting.filter(({ fits }) => fits()), waiting.filter(({ fits }) => !fits())]
      waiting = later
      for (const { resolve } of now) resolve()
    }
  }
}

/** A WebSocket, once it is ready. */
export async function socketTo(
  t: Test,
  url: string,
  query = '',
  headers: Record<string, string> = admin
): Promise<Ear> {
  const socket = new WebSocket(`${url.replace('http', 'ws')}/events${query}`, { headers })
  const { promise: closed, resolve } = Promise.withResolvers<{ code: number; reason: string }>()
  socket.on('close', (code, reason) => resolve({ code, reason: String(reason) }))
  const ear = createEar(closed, () => socket.close())
  socket.on('message', data => ear.hear(JSON.parse(String(data))))
  t.teardown(() => socket.terminate())
  await once(socket, 'open')
  await ear.until(isReady)
  return ear
}

/** What a WebSocket that is not upgraded gets instead. */
export async function refusedSocket(
  url: string,
  query: string,
  headers: Record<string, string> = {},
  path = '/events'
) {
  const socket = new WebSocket(`${url.replace('http', 'ws')}${path}${query}`, { headers })
  socket.on('error', () => {})
  const [request, response] = await once(socket, 'unexpected-response')
  let text = ''
  for await (const part of response) text += part
  request.destroy()
  return { status: response.statusCode as number, headers: response.headers, body: JSON.parse(text) }
}

/** Server-sent events, once they are ready; read as a browser reads them (HTML, 9.2.6). */
export async function sseTo(
  t: Test,
  url: string,
  query = '',
  headers: Record<string, string> = admin
): Promise<Ear & { readonly lastEventId: string; readonly head: Headers }> {
  const leaving = new AbortController()
  t.teardown(() => leaving.abort())
  const response = await fetch(`${url}/events${query}`, { headers, signal: leaving.signal })
  if (response.status !== 200 || response.body === null) throw new Error(`${response.status} ${await response.text()}`)
  const { promise: closed, resolve } = Promise.withResolvers<{ code: number; reason: string }>()
  const ear = createEar(closed, () => leaving.abort())
  let lastEventId = ''
  const read = async (body: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder()
    let rest = ''
    let data: string[] = []
    let name = ''
    for await (const part of body) {
      const lines = (rest + decoder.decode(part, { stream: true })).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) {
        if (line === '') {
          // A browser hands it to `onmessage` if it has data and no name.
          if (data.length > 0 && name === '') ear.hear(JSON.parse(data.join('\n')))
          data = []
          name = ''
        } else if (line.startsWith('id: ')) lastEventId = line.slice(4)
        else if (line.startsWith('data: ')) data.push(line.slice(6))
        else if (line.startsWith('event: ')) name = line.slice(7)
      }
    }
  }
  read(response.body).then(
    () => resolve({ code: 0, reason: 'ended' }),
    () => resolve({ code: 0, reason: 'broken' })
  )
  await ear.until(isReady)
  const { heard, until, count, close } = ear
  return {
    heard,
    until,
    count,
    close,
    closed,
    head: response.headers,
    get events() {
      return ear.events
    },
    get lastEventId() {
      return lastEventId
    }
  }
}

/** One call over HTTP. */
export async function call(url: string, body: object = {}, headers: Record<string, string> = {}): Promise<Response> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: JSON.stringify({ model: 'test', messages: [{ role: 'user', content: 'Hello' }], ...body })
  })
  await response.arrayBuffer()
  return response
}

export async function ticketOf(url: string): Promise<string> {
  const response = await fetch(`${url}/events/ticket`, { method: 'POST', headers: admin })
  return ((await response.json()) as { ticket: string }).ticket
}

/** A client of the same Redis. */
export function redisClient(t: Test, { url }: Pick<TestRedis, 'url'>): Redis {
  const client = new Redis(url, { protocol: 2, maxRetriesPerRequest: null, retryStrategy: () => 50 })
  client.on('error', () => {})
  t.teardown(() => client.disconnect())
  return client
}

/** What a consumer group gets, acknowledged one by one, until nothing more comes. */
export async function consume(client: Redis, group: string, atLeast: number): Promise<Said[]> {
  const found: Said[] = []
  for (let empty = 0; found.length < atLeast && empty < 20; ) {
    const answer = (await client.xreadgroup(
      ...(['GROUP', group, 'worker', 'COUNT', 500, 'BLOCK', 250, 'STREAMS', 'agent.events', '>'] as const)
    )) as Array<[string, Array<[string, string[]]>]> | null
    if (answer === null) {
      empty++
      continue
    }
    for (const [id, fields] of answer[0]![1]) {
      found.push({ event_id: id, event_type: fields[1]!, ...JSON.parse(fields[3]!) })
      await client.xack('agent.events', group, id)
    }
  }
  return found
}

/** Nobody listens there. */
export async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  await once(server, 'close')
  return port
}

/** Resolves once something holds that no event tells of. */
export async function holds(fits: () => unknown): Promise<void> {
  while (!(await fits())) await new Promise(resolve => setTimeout(resolve, 5))
}
