import t, { type Test } from 'tap'
import type { ModelOptions, RoutingOptions } from '../../../plugins/routing/index.ts'
import type { RoutingTable } from '../../../schemas/routing.ts'
import { gate } from '../../upstream.ts'
import { ask, scripted } from '../kernel.ts'
import { at, stage } from './kit.ts'

type Table = RoutingTable<ModelOptions>

const one = { test: { targets: at('up') } }
const two = { test: { targets: at('up') }, other: { targets: at('up'), retries: 0 } }

/** A gateway that reads its tables from here, one after the other; the last one stays. */
async function reading(t: Test, ...tables: Array<Table | Error>) {
  let reads = 0
  const source: RoutingOptions['source'] = async () => {
    const table = tables[Math.min(reads++, tables.length - 1)]!
    if (table instanceof Error) throw table
    return table
  }
  const found = await stage(t, { providers: [scripted('up')], models: one, source, hash: 'first' })
  const { reload } = found.gateway
  if (reload === undefined) throw new Error('There is no reload.')
  return { ...found, reload }
}

t.test('reading the table again', async t => {
  t.test('puts what is new in its place and says what has changed', async t => {
    const { reload, run, gateway } = await reading(t, { models: two, defaultModel: 'other', hash: 'second' })
    t.strictSame(await reload(), {
      changes: [
        { path: 'models.other', after: two.other },
        { path: 'defaultModel', after: 'other' }
      ],
      restart: [],
      hash: 'second',
      applied: true
    })
    t.equal(gateway.models.hash, 'second')
    await run({ ...ask, model: 'other' })
    t.match(await reload(), { changes: [], applied: false }, 'which is nothing the second time')
  })

  t.test('changes nothing when it is only to be shown', async t => {
    const { reload, fail, gateway } = await reading(t, { models: two, hash: 'second' })
    t.match(await reload({ dryRun: true }), { changes: [{ path: 'models.other' }], hash: 'second', applied: false })
    t.equal(gateway.models.hash, 'first')
    t.match(await fail({ ...ask, model: 'other' }), { statusCode: 404 })
    t.match(await reload(), { changes: [{ path: 'models.other' }], applied: true })
  })

  t.test('tells of a fault, also when it is only to be shown, and leaves everything as it was', async t => {
    const broken = { models: { test: { targets: at('up'), fallbacks: ['nowhere'] } } }
    const { reload, run, gateway } = await reading(t, broken, broken, new Error('no such file'), { models: two })
    const fault = { message: /there is no model 'nowhere'/ }
    await t.rejects(reload({ dryRun: true }), fault)
    await t.rejects(reload(), fault)
    await t.rejects(reload(), { message: 'no such file' })
    t.equal(gateway.models.hash, 'first')
    await run()
    t.match(await reload(), { applied: true }, 'and the next one is not kept from it')
  })

  t.test('is done one after the other, so that the later one counts', async t => {
    const { promise, open } = gate()
    let reads = 0
    const { gateway } = await stage(t, {
      providers: [scripted('up')],
      models: one,
      async source() {
        if (reads++ === 0) {
          await promise
          return { models: two, hash: 'second' }
        }
        return { models: one, hash: 'third' }
      }
    })
    const both = Promise.all([gateway.reload?.(), gateway.reload?.()])
    open()
    t.match(await both, [{ applied: true }, { applied: true, hash: 'third' }])
    t.equal(gateway.models.hash, 'third')
  })

  t.test('names what only counts after a restart', async t => {
    const { reload } = await reading(t, { models: two, restart: ['server.port'] })
    t.strictSame((await reload()).restart, ['server.port'])
  })

  t.test('is not there in an app that was given its table', async t => {
    const { gateway } = await stage(t, { providers: [scripted('up')], models: one })
    t.equal(gateway.reload, undefined)
  })
})
