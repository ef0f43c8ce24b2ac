import { once } from 'node:events'
import { connect } from 'node:net'
import type { Test } from 'tap'
import WebSocket from 'ws'
import { admin, call, holds, socketTo, start, token } from './kit.ts'

/** The ids that a WebSocket gets, and nothing else of them. */
async function idsTo(t: Test, url: string): Promise<string[]> {
  const ids: string[] = []
  const socket = new WebSocket(`${url.replace('http', 'ws')}/events?type=model.*`, { headers: admin })
  t.teardown(() => socket.terminate())
  socket.on('message', data => ids.push(String(data).slice(13, 40).split('"', 1)[0]!))
  await once(socket, 'open')
  await holds(() => ids.length === 1)
  ids.pop()
  return ids
}

/** So many WebSockets get every event of so many calls; one that never reads is let go, and nobody waits for it. */
export async function everybodyGetsEverything(t: Test, subscribers: number, calls: number): Promise<void> {
  const { app, url } = await start(t, {
    plugins: {
      auth: { adminToken: token, anonymousTenant: 'public' },
      budgets: { unpriced: 'allow' },
      events: { buffer: 65_536 }
    }
  })
  const stream = () => {
    if (app.gateway.eventStream === undefined) throw new Error('The plugin events is not there.')
    return app.gateway.eventStream
  }
  const all = await socketTo(t, url)
  const ears: string[][] = []
  for (let count = 1; count < subscribers; count++) ears.push(await idsTo(t, url))

  const deaf = connect(Number(new URL(url).port), '127.0.0.1')
  t.teardown(() => deaf.destroy())
  deaf.on('error', () => {})
  deaf.pause()
  deaf.write(
    `GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer ${token}\r\n` +
      'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
  )
  await holds(() => stream().subscribers === subscribers + 1)

  const times: number[] = []
  let fillers = 0
  for (let count = 0; count < calls; count++) {
    const began = performance.now()
    await call(url, { stream: count % 2 === 0 })
    times.push(performance.now() - began)
    // Systems take some megabytes for a reader who takes nothing: that much has to be said before anybody notices.
    for (let filler = 0; filler < 20 && stream().slow === 0; filler++) {
      fillers++
      app.gateway.events.emit('tenant.created', { tenant: 'acme', actor: 'x'.repeat(40_000) })
    }
    await all.count(fillers + Math.ceil((count + 1) * 4.5 - 1))
  }
  const expected = calls * 4.5
  await all.count(expected + fillers)
  await holds(() => ears.every(ids => ids.length === expected))
  t.equal(stream().slow, 1)
  t.equal(stream().subscribers, subscribers)
  const ids = all.events.filter(({ event_type }) => event_type.startsWith('model.')).map(({ event_id }) => event_id)
  t.equal(new Set(ids).size, expected)
  const different = ears.filter(own => own.join() !== ids.join())
  t.equal(different.length, 0, 'everybody got the same, in the same order')
  times.sort((one, other) => one - other)
  const middle = times[calls >> 1]?.toFixed(1)
  t.comment(`${subscribers} subscribers, ${calls} calls: p50 ${middle} ms, slowest ${times.at(-1)?.toFixed(1)} ms`)
  deaf.resume()
  await Promise.race([once(deaf, 'close'), once(deaf, 'end')])
}
