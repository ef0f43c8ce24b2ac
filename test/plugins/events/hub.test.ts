import t, { type Test } from 'tap'
import { createHub, type Sink } from '../../../plugins/events/hub.ts'
import { isAfter, itemOf } from '../../../plugins/events/item.ts'
import { createRing } from '../../../plugins/events/ring.ts'
import type { Source } from '../../../plugins/events/source.ts'
import { createEventBus } from '../../../schemas/events.ts'
import { holds } from './kit.ts'

const filter = { key: '', passes: () => true }
const reader = { tenant: 'public', key: null, kind: 'admin' as const, until: null }

function stage(t: Test, options: { kept?: number; buffer?: number } = {}) {
  const bus = createEventBus(error => t.fail(String(error)))
  const ring = createRing({ bus, kept: options.kept ?? 1_000, linger: 1, show: items => hub.show(items) })
  const failed = (error: unknown) => t.fail(String(error))
  const hub = createHub(() => ring, { buffer: options.buffer ?? 1_000_000, now: Date.now, failed })
  t.teardown(() => ring.close())
  return { ring, hub, emit: (actor: number) => bus.emit('tenant.created', { tenant: 'acme', actor: String(actor) }) }
}

/** A connection whose reader takes what waits when `take` is called. */
function connection() {
  let text = ''
  let waiting = 0
  let drained = Promise.withResolvers<boolean>()
  const ended = Promise.withResolvers<string>()
  const sink: Sink = {
    form: 'sse',
    get waiting() {
      return waiting
    },
    write(bytes) {
      text += bytes
      waiting += bytes.length
    },
    beat() {},
    drained: () => drained.promise,
    end: ended.resolve,
    cut() {}
  }
  return {
    sink,
    ended: ended.promise,
    get text() {
      return text
    },
    get waiting() {
      return waiting
    },
    get actors() {
      return [...text.matchAll(/"actor":"(\d+)"/g)].map(([, actor]) => Number(actor))
    },
    take() {
      waiting = 0
      drained.resolve(true)
      drained = Promise.withResolvers()
    }
  }
}

t.test('what was shown just before the end was lost', async t => {
  const { hub, emit } = stage(t)
  const one = connection()
  hub.add(one.sink, { filter, after: null }, reader)
  await holds(() => one.text.includes('gateway.events.ready'))
  for (let actor = 0; actor < 5; actor++) emit(actor)
  hub.close()
  t.strictSame(one.actors, [0, 1, 2, 3, 4])
  t.equal(await one.ended, 'closing')
})

t.test('closing in the middle of a batch, everybody gets the rest of it once', async t => {
  const { hub, emit } = stage(t)
  const all = Array.from({ length: 250 }, connection)
  for (const { sink } of all) hub.add(sink, { filter, after: null }, reader)
  await holds(() => all.every(({ text }) => text.includes('gateway.events.ready')))
  emit(0)
  const shown = hub.shown()
  t.strictSame(all[249]!.actors, [], 'it has its turn later')
  emit(1)
  hub.close()
  await shown
  const wrong = all.filter(({ actors }) => actors.join() !== '0,1')
  t.equal(wrong.length, 0)
})

t.test('whoever came back from a process that was a moment ahead was told of a gap, and got events twice', async t => {
  let last = '5-0'
  const seen = itemOf('7-0', 'a.b', '{"actor":"7"}')!
  const source: Source = {
    get last() {
      return last
    },
    start() {},
    stop() {},
    ready: async () => {},
    between: async () => [],
    reaches: async id => !isAfter(id, '7-0'),
    misses: async () => false,
    close() {}
  }
  const failed = (error: unknown) => t.fail(String(error))
  const hub = createHub(() => source, { buffer: 1_000_000, now: Date.now, failed })
  const [one, stranger] = [connection(), connection()]
  hub.add(one.sink, { filter, after: '7-0' }, reader)
  hub.add(stranger.sink, { filter, after: '8-0' }, reader)
  await holds(() => stranger.text !== '')
  t.match(stranger.text, /"event_id":"5-0","event_type":"gateway\.events\.gap","after":"8-0"/)
  t.equal(one.text, '')
  last = '7-0'
  hub.show([seen])
  await holds(() => one.text !== '')
  await hub.shown()
  t.match(one.text, /^id: 7-0\ndata: {"event_id":"7-0","event_type":"gateway\.events\.ready"}\n\n$/)
  t.strictSame(stranger.actors, [7])
  hub.close()
})

t.test('what is dropped while somebody catches up was missing without a word', async t => {
  const { ring, hub, emit } = stage(t, { kept: 600, buffer: 1_000 })
  ring.start()
  const before = ring.last
  for (let actor = 0; actor < 700; actor++) emit(actor)
  const late = connection()
  hub.add(late.sink, { filter, after: before }, reader)
  await holds(() => late.waiting > 1_000)
  for (let actor = 700; actor < 5_000; actor++) emit(actor)
  late.take()
  await holds(() => late.waiting > 1_000)
  late.take()
  await holds(() => late.actors.includes(4_999))
  const [cut] = late.actors.flatMap((actor, index) => (actor === late.actors[index - 1]! + 1 ? [] : index)).slice(1)
  t.ok(cut, 'something is missing')
  const [, text] = late.text.split('"actor":"499"')
  t.match(text, /^}\n\ndata: {"event_type":"gateway\.events\.gap","after":null}/)
  t.equal(late.text.match(/gateway\.events\.gap/g)?.length, 1)
  hub.close()
})
