import t from 'tap'
import { InternalError, StoreUnavailable } from '../../schemas/errors.ts'
import { createKept } from '../../schemas/kept.ts'
import { type FakeShared, fakeClock, fakeRedis } from '../plugins/auth/kit.ts'

/** A table that counts how often it is read, and one process that keeps what it reads. */
function table(shared?: FakeShared, limit = 100) {
  const rows = new Map<string, string>()
  const clock = fakeClock()
  const state = { reads: 0, error: null as Error | null, readable: true, gate: null as Promise<void> | null }
  const kept = createKept<{ text: string }>({
    channel: 'row',
    async read(id) {
      state.reads++
      if (state.error) throw state.error
      const text = rows.get(id)
      if (state.gate) await state.gate
      return text === undefined ? null : { text }
    },
    readable: () => state.readable,
    shared,
    limit,
    now: clock.now
  })
  const textOf = async (id: string) => (await kept.find(id))?.text ?? null
  return { rows, clock, state, kept, textOf }
}

t.test('a row is read once, however many wait for it and whoever comes later', async t => {
  const { rows, state, kept } = table()
  rows.set('a', 'one')
  t.equal(kept.recall('a'), undefined)
  const found = await Promise.all([kept.find('a'), kept.find('a'), kept.find('a')])
  t.same(found, [{ text: 'one' }, { text: 'one' }, { text: 'one' }])
  t.same(kept.recall('a'), { text: 'one' })
  t.same(await kept.find('a'), { text: 'one' })
  t.equal(state.reads, 1)
})

t.test('an unknown id is not asked for again for a while', async t => {
  const { state, kept, clock, textOf } = table()
  t.equal(await textOf('nobody'), null)
  for (let n = 0; n < 50; n++) t.equal(await textOf('nobody'), null)
  t.equal(kept.recall('nobody'), null)
  t.equal(state.reads, 1)
  clock.time += 10_000
  t.equal(await textOf('nobody'), null)
  t.equal(state.reads, 2)
})

t.test('made-up ids do not push out what is in use', async t => {
  const { rows, state, kept, textOf } = table(undefined, 100)
  rows.set('a', 'one')
  await textOf('a')
  for (let n = 0; n < 1_000; n++) await textOf(`made-up-${n}`)
  const reads = state.reads
  t.same(kept.recall('a'), { text: 'one' })
  t.equal(state.reads, reads)
})

t.test('a change counts at once, also for an id that was unknown', async t => {
  const { rows, state, kept, textOf } = table()
  await textOf('a')
  await kept.change('a', async () => {
    rows.set('a', 'new')
    return { text: 'new' }
  })
  t.same(kept.recall('a'), { text: 'new' })
  await kept.change('a', async () => null)
  t.equal(kept.recall('a'), null)
  t.equal(state.reads, 1)
})

t.test('an id that was unknown before it was made is not unknown again once it is pushed out', async t => {
  const { rows, kept, textOf } = table(undefined, 2)
  await textOf('a')
  await kept.change('a', async () => {
    rows.set('a', 'new')
    return { text: 'new' }
  })
  for (const id of ['b', 'c', 'd', 'e']) {
    rows.set(id, 'other')
    await textOf(id)
  }
  t.equal(kept.peek('a'), undefined)
  t.equal(await textOf('a'), 'new')
})

t.test('a read that began before a change does not bring the old row back', async t => {
  const { rows, state, kept } = table()
  rows.set('a', 'old')
  const { promise, resolve } = Promise.withResolvers<void>()
  state.gate = promise
  const reading = kept.find('a')
  await kept.change('a', async () => ({ text: 'new' }))
  resolve()
  await reading
  t.same(kept.recall('a'), { text: 'new' })
})

t.test('changes of one id happen one after another, of others side by side', async t => {
  const { kept } = table()
  const order: string[] = []
  const { promise, resolve } = Promise.withResolvers<void>()
  const first = kept.change('a', async () => {
    order.push('a1 begins')
    await promise
    order.push('a1 ends')
    return { text: '1' }
  })
  const second = kept.change('a', async () => {
    order.push('a2')
    return { text: '2' }
  })
  await kept.change('b', async () => {
    order.push('b')
    return { text: 'b' }
  })
  resolve()
  await Promise.all([first, second])
  t.same(order, ['a1 begins', 'b', 'a1 ends', 'a2'])
  t.same(kept.recall('a'), { text: '2' })
})

t.test('a change that failed does not stop the next, and nothing is believed before it is read again', async t => {
  const { rows, state, kept, textOf } = table()
  rows.set('a', 'old')
  await textOf('a')
  const failed = kept.change('a', async () => {
    rows.set('a', 'done all the same')
    throw new StoreUnavailable('the answer was lost.')
  })
  const next = kept.change('b', async () => ({ text: 'b' }))
  await t.rejects(failed, { code: 'GATEWAY_STORE_UNAVAILABLE' })
  await next
  t.equal(kept.recall('a'), undefined)
  t.equal(await textOf('a'), 'done all the same')
  state.readable = false
  t.same(kept.recall('a'), { text: 'done all the same' })
})

t.test('other processes hear of a change and read again', async t => {
  const redis = fakeRedis()
  const here = table(redis())
  const there = table(redis())
  there.rows.set('a', 'old')
  await there.textOf('a')
  await here.kept.change('a', async () => ({ text: 'new' }))
  t.equal(there.kept.recall('a'), undefined)
  there.rows.set('a', 'new')
  t.equal(await there.textOf('a'), 'new')
})

t.test('a change that another process made meanwhile leaves nothing behind that may be outdated', async t => {
  const redis = fakeRedis()
  const here = table(redis())
  const there = table(redis())
  const { promise, resolve } = Promise.withResolvers<void>()
  const slow = here.kept.change('a', async () => {
    here.rows.set('a', 'first')
    await promise
    return { text: 'first' }
  })
  await Promise.resolve()
  await there.kept.change('a', async () => {
    here.rows.set('a', 'second')
    return { text: 'second' }
  })
  resolve()
  await slow
  t.equal(here.kept.recall('a'), undefined)
  t.equal(await here.textOf('a'), 'second')
})

t.test('while Redis is down, what is kept is read again after a second', async t => {
  const shared = fakeRedis()()
  const { rows, state, kept, clock, textOf } = table(shared)
  rows.set('a', 'one')
  await textOf('a')
  await textOf('nobody')
  clock.time += 30_000
  t.same(kept.recall('a'), { text: 'one' })
  shared.cut()
  rows.set('a', 'two').set('nobody', 'somebody')
  t.equal(await textOf('a'), 'two')
  t.equal(await textOf('nobody'), 'somebody')
  clock.time += 999
  const reads = state.reads
  t.same(kept.recall('a'), { text: 'two' })
  t.equal(state.reads, reads)
  clock.time += 1
  t.equal(kept.recall('a'), undefined)
})

t.test('when Redis is back, everything is read again once: messages were missed', async t => {
  const shared = fakeRedis()()
  const { rows, kept, textOf } = table(shared)
  rows.set('a', 'one')
  shared.cut()
  await textOf('a')
  rows.set('a', 'two')
  shared.mend()
  t.equal(kept.recall('a'), undefined)
  t.equal(await textOf('a'), 'two')
  t.same(kept.recall('a'), { text: 'two' })
})

t.test('a process that was cut off tells its changes when it is back', async t => {
  const redis = fakeRedis()
  const here = redis()
  const cut = table(here)
  const other = table(redis())
  other.rows.set('a', 'old')
  await other.textOf('a')
  here.cut()
  await cut.kept.change('a', async () => ({ text: 'new' }))
  t.same(other.kept.recall('a'), { text: 'old' })
  here.mend()
  t.equal(other.kept.recall('a'), undefined)
})

t.test('of very many changes it only tells that there were many', async t => {
  const redis = fakeRedis()
  const here = redis()
  const cut = table(here, 10)
  const other = table(redis())
  other.rows.set('a', 'old')
  await other.textOf('a')
  here.cut()
  for (let n = 0; n < 2_000; n++) await cut.kept.change(`n${n}`, async () => null)
  here.mend()
  t.same(here.said, ['row *'])
  t.equal(other.kept.recall('a'), undefined)
})

t.test('a message that was lost does harm for a minute at most', async t => {
  const { rows, kept, clock, textOf } = table(fakeRedis()())
  rows.set('a', 'one')
  await textOf('a')
  clock.time += 59_999
  t.same(kept.recall('a'), { text: 'one' })
  clock.time += 1
  t.equal(kept.recall('a'), undefined)
})

t.test('without Redis nothing changes behind our back: it is read once', async t => {
  const { rows, state, clock, textOf } = table()
  rows.set('a', 'one')
  await textOf('a')
  clock.time += 1e9
  await textOf('a')
  t.equal(state.reads, 1)
})

t.test('what cannot be read again counts as it was', async t => {
  const shared = fakeRedis()()
  const { rows, state, kept, clock, textOf } = table(shared)
  rows.set('a', 'one')
  await textOf('a')
  shared.cut()
  state.error = new StoreUnavailable('it was stopped.')
  clock.time += 5_000
  t.equal(await textOf('a'), 'one')
  const reads = state.reads
  t.equal(await textOf('a'), 'one')
  t.equal(state.reads, reads, 'and is not asked for again within a second')
  clock.time += 5_000
  state.readable = false
  t.same(kept.recall('a'), { text: 'one' }, 'known to be gone: without waiting')
})

t.test('what was never read, or is known to have changed, is an error then', async t => {
  const redis = fakeRedis()
  const here = table(redis())
  const there = table(redis())
  here.rows.set('a', 'one')
  await here.textOf('a')
  await there.kept.change('a', async () => null)
  here.state.error = new StoreUnavailable('it was stopped.')
  await t.rejects(here.textOf('a'), { code: 'GATEWAY_STORE_UNAVAILABLE' })
  await t.rejects(here.textOf('b'), { code: 'GATEWAY_STORE_UNAVAILABLE' })
})

t.test('any other error is told, whatever is kept', async t => {
  const shared = fakeRedis()()
  const { rows, state, clock, textOf } = table(shared)
  rows.set('a', 'one')
  await textOf('a')
  shared.cut()
  clock.time += 5_000
  state.error = new InternalError()
  await t.rejects(textOf('a'), { code: 'GATEWAY_INTERNAL_ERROR' })
})

t.test('a clock that jumps back makes nothing young again', async t => {
  const shared = fakeRedis()()
  const { rows, kept, clock, textOf } = table(shared)
  rows.set('a', 'one')
  await textOf('a')
  shared.cut()
  clock.time -= 3_600_000
  t.equal(kept.recall('a'), undefined)
  await textOf('a')
  t.same(kept.recall('a'), { text: 'one' })
})

t.test('forgetting takes what a test finds, and what is being read', async t => {
  const { rows, state, kept, textOf } = table()
  rows.set('a', 'one').set('b', 'two').set('c', 'one')
  await textOf('a')
  await textOf('b')
  const { promise, resolve } = Promise.withResolvers<void>()
  state.gate = promise
  const reading = kept.find('c')
  kept.forget(({ text }) => text === 'one')
  resolve()
  await reading
  t.equal(kept.recall('a'), undefined)
  t.same(kept.recall('b'), { text: 'two' })
  t.equal(kept.recall('c'), undefined)
})
