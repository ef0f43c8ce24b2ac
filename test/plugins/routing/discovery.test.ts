import t from 'tap'
import { createDiscovery } from '../../../plugins/routing/discovery.ts'
import { vendorFault } from '../../../providers/faults.ts'
import type { ModelInfo, Provider } from '../../../schemas/provider.ts'
import { gate, turn } from '../../upstream.ts'
import { scripted } from '../kernel.ts'
import { Clock } from './kit.ts'

const kept = 300_000

/** Discovery with a clock and patience that ends when it is told. */
function discovery() {
  const clock = new Clock()
  const lines: object[] = []
  const explained: object[] = []
  const waiting: Array<{ milliseconds: number; resolve: () => void }> = []
  const log = {
    error() {},
    info() {},
    debug: (details: object) => void explained.push(details),
    warn: (details: object) => void lines.push(details)
  }
  const found = createDiscovery({
    kept,
    log,
    now: clock.now,
    pause: (milliseconds, signal) =>
      new Promise((resolve, reject) => {
        waiting.push({ milliseconds, resolve })
        signal.addEventListener('abort', () => reject(signal.reason))
      })
  })
  return { ...found, clock, lines, explained, waiting }
}

/** A provider that lists what is asked of it, call by call. */
function lists(...answers: Array<() => Promise<ModelInfo[]>>): Provider & { readonly asked: number } {
  let asked = 0
  return {
    ...scripted('up'),
    get asked() {
      return asked
    },
    models: () => answers[Math.min(asked++, answers.length - 1)]!()
  }
}

const some = async () => [{ id: 'a' }]
const none = async () => Promise.reject(new Error('not now'))

t.test('what a provider lists', async t => {
  t.test('is asked for once and kept', async t => {
    const { models, known, clock } = discovery()
    const up = lists(some)
    t.equal(known(up, 'a'), undefined, 'nobody has asked yet')
    t.strictSame(await models(up), [{ id: 'a' }])
    clock.advance(kept - 1)
    await models(up)
    t.equal(up.asked, 1)
    t.strictSame(known(up, 'a'), { id: 'a' })
    t.equal(known(up, 'b'), undefined)
  })

  t.test('is asked for once by many who come at the same time', async t => {
    const { models } = discovery()
    const { promise, open } = gate()
    const up = lists(async () => {
      await promise
      return some()
    })
    const all = Promise.all([models(up), models(up), models(up)])
    open()
    for (const found of await all) t.strictSame(found, [{ id: 'a' }])
    t.equal(up.asked, 1)
  })

  t.test('is asked for again in the background when it is old, and the old list is given meanwhile', async t => {
    const { models, clock } = discovery()
    const { promise, open } = gate()
    const up = lists(some, async () => {
      await promise
      return [{ id: 'b' }]
    })
    await models(up)
    clock.advance(kept)
    t.strictSame(await models(up), [{ id: 'a' }])
    t.strictSame(await models(up), [{ id: 'a' }])
    t.equal(up.asked, 2)
    open()
    await turn()
    t.strictSame(await models(up), [{ id: 'b' }])
    t.equal(up.asked, 2)
  })

  t.test('stays what it was when it cannot be asked for again, which is tried in half a minute', async t => {
    const { models, clock, lines } = discovery()
    const up = lists(some, none, async () => [{ id: 'c' }])
    await models(up)
    clock.advance(kept)
    await models(up)
    await turn()
    t.match(lines, [{ provider: 'up', err: { message: 'not now' } }])
    clock.advance(29_999)
    t.strictSame(await models(up), [{ id: 'a' }])
    t.equal(up.asked, 2)
    clock.advance(1)
    await models(up)
    await turn()
    t.strictSame(await models(up), [{ id: 'c' }])
  })

  t.test('is nothing while its provider cannot say, and nobody waits for that twice', async t => {
    const { models } = discovery()
    const up = lists(none)
    t.strictSame(await models(up), [])
    t.strictSame(await models(up), [])
    t.equal(up.asked, 1)
  })

  t.test('is waited for five seconds, also where the provider does not care for signals', async t => {
    const { models, waiting, lines } = discovery()
    const up = lists(() => new Promise(() => {}))
    const asking = models(up)
    await turn()
    t.equal(waiting[0]?.milliseconds, 5_000)
    waiting[0]?.resolve()
    t.strictSame(await asking, [])
    t.match(lines, [{ err: { message: 'There was no answer within 5000 ms.' } }])
  })

  t.test('stood in the log in the words of the vendor where it could not be had: they are there at debug', async t => {
    const { models, lines, explained } = discovery()
    const refused = vendorFault(500, { message: 'you said: the secret plan' }, {}, text => text)
    await models(lists(() => Promise.reject(refused)))
    t.strictSame(lines, [{ provider: 'up', reason: 'The provider of this model answered with status 500.' }])
    t.strictSame(explained, [{ provider: 'up', err: refused }])
    t.match(refused.message, 'the secret plan')
    const ours = new Error('not now')
    const other = discovery()
    await other.models(lists(() => Promise.reject(ours)))
    t.strictSame(other.lines, [{ provider: 'up', err: ours }])
  })

  t.test('does not hide what others list', async t => {
    const { models, waiting } = discovery()
    const slow = lists(() => new Promise(() => {}))
    const all = Promise.all([lists(some), lists(none), slow].map(models))
    await turn()
    for (const { resolve } of waiting) resolve()
    t.strictSame(await all, [[{ id: 'a' }], [], []])
  })

  t.test('is nothing where a provider does not list', async t => {
    const { models } = discovery()
    t.strictSame(await models(scripted('up')), [])
  })

  t.test('is not waited for once the gateway closes', async t => {
    const { models, close, lines } = discovery()
    const asking = models(lists(() => new Promise(() => {})))
    await turn()
    close()
    t.strictSame(await asking, [])
    t.strictSame(lines, [])
  })
})
