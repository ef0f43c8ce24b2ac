import type { Test } from 'tap'
import { startRedis } from '../../services/index.ts'
import { consume, redisClient, type Said, start, token } from './kit.ts'

const ofACall = ['model.request.start', 'model.attempt.start', 'model.attempt.complete', 'model.request.complete']
const ofAStream = [...ofACall.slice(0, 2), 'model.streaming.start', ...ofACall.slice(2)]

/** Two processes take so many calls; a consumer group reads what they say of them. */
export async function consumed(t: Test, calls: number): Promise<void> {
  const redis = await startRedis(t)
  if (redis === null) return
  const client = redisClient(t, redis)
  await client.xgroup('CREATE', 'agent.events', 'billing', '$', 'MKSTREAM')
  const options = {
    redis: redis.url,
    plugins: {
      auth: { adminToken: token, anonymousTenant: 'public' },
      budgets: false as const,
      limits: false as const,
      events: { maxLength: calls * 10 + 1_000 }
    }
  }
  const gateways = [await start(t, options), await start(t, options)]
  const expected = calls * 4 + Math.floor(calls / 3)
  const reading = consume(client, 'billing', expected)

  let next = 0
  const worker = async () => {
    while (next < calls) {
      const { gateway } = gateways[next % 2]!.app
      const isStream = next++ % 3 === 2
      const request = { model: 'test', messages: [{ role: 'user' as const, content: 'Hello' }], stream: isStream }
      // The echo is nearer than any provider: without this nothing but calls would have its turn.
      await new Promise(resolve => setImmediate(resolve))
      const answer = await gateway.complete(request, gateway.caller())
      if (answer.stream) for await (const _frames of answer.frames);
    }
  }
  await Promise.all(Array.from({ length: 32 }, worker))
  const found = await reading

  t.equal(found.length, expected)
  t.equal(new Set(found.map(({ event_id }) => event_id)).size, expected, 'each entry once')
  const byCall = new Map<string, Said[]>()
  for (const event of found) {
    const id = String(event['id'])
    const events = byCall.get(id) ?? []
    events.push(event)
    byCall.set(id, events)
  }
  t.equal(byCall.size, calls)
  let wrong = 0
  for (const events of byCall.values()) {
    const types = events.map(({ event_type }) => event_type).join()
    if (types !== (events[0]?.['stream'] === true ? ofAStream : ofACall).join()) wrong++
  }
  t.equal(wrong, 0, 'in order within each call')
  t.equal((await client.xpending('agent.events', 'billing'))[0], 0, 'all are acknowledged')
  for (const { app } of gateways) t.equal(app.gateway.eventStream?.dropped, 0)
}
