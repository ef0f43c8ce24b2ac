import { once } from 'node:events'
import { connect } from 'node:net'
import type { Test } from 'tap'
import { call, holds, socketTo, start, token } from './kit.ts'

/** So many WebSockets get every event of so many calls; one that never reads is let go, and nobody waits for it. */
export async function everybodyGetsEverything(t: Test, subscribers: number, calls: number): Promise<void> {
  const { app, url } = await start(t, {
    plugins: {
      auth: { adminToken: token, anonymousTenant: 'public' },
      budgets: { unpriced: 'allow' },
      events: { buffer: 65_536, kept: 100_000 }
    }
  })
  const ears = []
  for (let count = 0; count < subscribers; count++) ears.push(await socketTo(t, url))

  const deaf = connect(Number(new URL(url).port), '127.0.0.1')
  t.teardown(() => deaf.destroy())
  deaf.on('error', () => {})
  deaf.pause()
  deaf.write(
    `GET /events HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer ${token}\r\n` +
      'sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n'
  )
  await holds(() => app.gateway.eventStream?.subscribers === subscribers + 1)

  const times: number[] = []
  for (let count = 0; count < calls; count++) {
    const began = performance.now()
    await call(url, { stream: count % 2 === 0 })
    times.push(performance.now() - began)
  }
  // What its own system takes for it is a few megabytes; more than that has to be said before anybody notices.
  const filler = 'x'.repeat(20_000)
  let fillers = 0
  while (app.gateway.eventStream?.slow === 0 && fillers < 5_000) {
    app.gateway.events.emit('tenant.created', { tenant: 'acme', actor: filler })
    fillers++
    await new Promise(resolve => setImmediate(resolve))
    if (fillers % 20 === 0) await ears[0]!.count(calls * 4.5 + fillers)
  }
  t.equal(app.gateway.eventStream?.slow, 1)
  t.equal(app.gateway.eventStream?.subscribers, subscribers)
  const expected = Math.ceil(calls * 4.5) + fillers
  await Promise.all(ears.map(ear => ear.count(expected)))
  const [first] = ears
  const ids = first!.events.map(({ event_id }) => event_id)
  t.equal(new Set(ids).size, expected)
  for (const ear of ears) if (ear.events.some(({ event_id }, index) => event_id !== ids[index])) t.fail('not the same')
  times.sort((one, other) => one - other)
  t.comment(
    `${subscribers} subscribers, ${calls} calls: p50 ${times[calls >> 1]?.toFixed(1)} ms, slowest ${times.at(-1)?.toFixed(1)} ms`
  )
  await holds(() => !deaf.readable || deaf.destroyed || deaf.bytesRead >= 0)
  deaf.resume()
  await Promise.race([once(deaf, 'close'), once(deaf, 'end')])
}
