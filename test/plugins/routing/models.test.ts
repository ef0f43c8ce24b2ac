import t, { type Test } from 'tap'
import pricing from '../../../plugins/pricing/index.ts'
import type { ModelOptions } from '../../../plugins/routing/index.ts'
import { ModelNotFound } from '../../../schemas/errors.ts'
import type { ModelInfo, Provider } from '../../../schemas/provider.ts'
import { gate, turn } from '../../upstream.ts'
import { ask, fails, scripted } from '../kernel.ts'
import { at, forever, modelsOf, type StageOptions, stage, status } from './kit.ts'

/** A provider that lists these models. */
function listing(name: string, ...models: ModelInfo[]): Provider {
  return Object.assign(scripted(name), { models: async () => models })
}

async function models(
  t: Test,
  providers: Provider[],
  aliases: Record<string, ModelOptions>,
  rest: Partial<StageOptions> = {}
) {
  const found = await stage(t, { providers, models: aliases, pause: forever, ...rest })
  return { ...found, list: () => found.gateway.models.list(), get: (id: string) => found.gateway.models.get(id) }
}

const passThrough = { routing: { passThrough: true } }

t.test('names of the form provider/model', async t => {
  t.test('work beside aliases where passThrough is set', async t => {
    const up = scripted('up')
    const { run } = await models(t, [up], { test: { targets: at('up') } }, passThrough)
    await run({ ...ask, model: 'up/vendor/some-model' })
    await run()
    t.strictSame(modelsOf(up), ['vendor/some-model', 'm'])
  })

  t.test('are unknown beside aliases where it is not', async t => {
    const { fail } = await models(t, [scripted('up')], { test: { targets: at('up') } })
    t.type(await fail({ ...ask, model: 'up/m' }), ModelNotFound)
  })

  t.test('mean an alias of that name first', async t => {
    const up = scripted('up')
    const aliases = { 'up/m': { targets: [{ provider: 'up', model: 'other' }] } }
    const { run } = await models(t, [up], aliases, passThrough)
    await run({ ...ask, model: 'up/m' })
    t.strictSame(modelsOf(up), ['other'])
  })

  t.test('share what is known of the target with the aliases that lead there', async t => {
    const up = scripted('up', fails(status(500)))
    const { fail, gateway } = await models(t, [up], { test: { targets: at('up'), retries: 0 } }, passThrough)
    for (let call = 0; call < 5; call++) await fail()
    t.match(await fail({ ...ask, model: 'up/m' }), { wire: 'upstream_overloaded' })
    t.equal(up.attempts.length, 5)
    t.strictSame(gateway.targets.readiness(), { up: [], down: ['up/m'] })
  })

  t.test('are remembered for a thousand of them only, and work for any', async t => {
    const up = scripted('up')
    const { run, gateway } = await models(t, [up], {})
    for (let name = 0; name < 1_100; name++) await run({ ...ask, model: `up/m${name}` })
    t.equal(gateway.targets.states.length, 1_000)
    await run({ ...ask, model: 'up/m0' })
    t.equal(up.attempts.length, 1_101)
    t.equal(gateway.targets.states.length, 1_000)
  })

  t.test('may be the default and what a task means', async t => {
    const up = scripted('up')
    const { run } = await models(
      t,
      [up],
      { test: { targets: at('up') } },
      {
        ...passThrough,
        defaultModel: 'up/a',
        tasks: { essay: 'up/b' }
      }
    )
    await run({ messages: ask.messages })
    await run({ messages: ask.messages, task: 'essay' })
    t.strictSame(modelsOf(up), ['a', 'b'])
  })
})

t.test('the list of models', async t => {
  t.test('names the aliases, in the order of the configuration', async t => {
    const { list } = await models(t, [listing('up', { id: 'hidden' })], {
      test: { targets: at('up') },
      other: { targets: at('up') }
    })
    t.match(await list(), [
      { id: 'test', object: 'model', owned_by: 'fastify-model-gateway' },
      { id: 'other', object: 'model', owned_by: 'fastify-model-gateway' }
    ])
    t.equal((await list()).length, 2, 'and what providers list only where a request may say it')
  })

  t.test('names what providers list as well, where requests may say that', async t => {
    const providers = [
      listing('one', { id: 'a', created: 7 }, { id: 'vendor/b' }),
      scripted('two'),
      listing('three', { id: 'c' })
    ]
    const { list } = await models(t, providers, { test: { targets: at('one') } }, passThrough)
    const found = await list()
    t.strictSame(
      found.map(({ id, owned_by }) => [id, owned_by]),
      [
        ['test', 'fastify-model-gateway'],
        ['one/a', 'one'],
        ['one/vendor/b', 'one'],
        ['three/c', 'three']
      ]
    )
    t.equal(found[1]?.created, 7)
  })

  t.test('names nothing that a request could not say, and an alias once', async t => {
    const up = listing('up', { id: 'a b' }, { id: '' }, { id: 'x\r\ny: z' }, { id: 'ok' }, { id: 'taken' })
    const { list } = await models(t, [up], { 'up/taken': { targets: at('up') } }, passThrough)
    t.strictSame(
      (await list()).map(({ id }) => id),
      ['up/taken', 'up/ok']
    )
  })

  t.test('makes no target of what it names', async t => {
    const up = listing('up', ...Array.from({ length: 3_000 }, (_, index) => ({ id: `m${index}` })))
    const { list, gateway } = await models(t, [up], {})
    t.equal((await list()).length, 3_000)
    t.equal(gateway.targets.states.length, 0)
  })

  t.test('says how much context there is: of the target that has the least', async t => {
    const up = Object.assign(listing('up', { id: 'b', contextLength: 5_000 }), {
      abilitiesOf: (model: string) => (model === 'c' ? { contextLength: 3_000 } : {})
    })
    const target = (model: string, contextLength?: number) => ({
      provider: 'up',
      model,
      abilities: contextLength === undefined ? {} : { contextLength }
    })
    const aliases = {
      both: { targets: [target('a', 8_000), target('x', 9_000)] },
      known: { targets: [target('c')] },
      listed: { targets: [target('b')] },
      nobody: { targets: [target('x')] }
    }
    const { list } = await models(t, [up], aliases, passThrough)
    await list()
    const found = new Map((await list()).map(model => [model.id, model.context_length]))
    t.strictSame(
      [...found],
      [
        ['both', 8_000],
        ['known', 3_000],
        ['listed', 5_000],
        ['nobody', undefined],
        ['up/b', 5_000]
      ]
    )
  })

  t.test('says what it costs: the dearest of its own targets, where all are known', async t => {
    const target = (model: string, input?: number, output = 10) => ({
      provider: 'up',
      model,
      ...(input !== undefined && { price: { input, output } })
    })
    const aliases = {
      test: { targets: [target('a', 3, 10), target('b', 0.25, 15)], fallbacks: ['dear'] },
      dear: { targets: [target('c', 900)] },
      unknown: { targets: [target('a', 3), target('x')] },
      off: { targets: at('away') }
    }
    const { list } = await models(t, [scripted('up')], aliases, {
      before: app => app.register(pricing, { table: false })
    })
    t.strictSame(
      (await list()).map(({ id, pricing }) => [id, pricing]),
      [
        ['test', { input: 3, output: 15 }],
        ['dear', { input: 900, output: 10 }],
        ['unknown', undefined],
        ['off', undefined]
      ]
    )
  })

  t.test('gives one of them by its name, listed or not', async t => {
    const { get } = await models(
      t,
      [listing('up', { id: 'a', created: 7, contextLength: 100 })],
      { test: { targets: at('up') } },
      passThrough
    )
    t.match(await get('test'), { id: 'test' })
    t.match(await get('up/a'), { id: 'up/a', created: 7, context_length: 100, owned_by: 'up' })
    t.match(await get('up/other'), { id: 'up/other', owned_by: 'up' })
    t.equal(await get('away/a'), undefined)
    t.equal(await get('nothing'), undefined)
  })

  t.test('asks only the provider of a name for it', async t => {
    const other = Object.assign(scripted('other'), { models: async () => Promise.reject(new Error('not asked')) })
    const lines: string[] = []
    const { get } = await models(t, [listing('up', { id: 'a' }), other], {}, { log: line => lines.push(line) })
    t.match(await get('up/a'), { id: 'up/a' })
    t.strictSame(lines, [])
  })
})

t.test('a table that is put in place of another one', async t => {
  t.test('counts for new calls at once, and calls in progress keep theirs', async t => {
    const { promise, open } = gate()
    const up = scripted('up', async () => {
      await promise
      throw status(500)
    })
    const spare = scripted('spare')
    const { run, fail, gateway } = await models(t, [up, spare], {
      test: { targets: at('up'), retries: 0, fallbacks: ['spare'] },
      spare: { targets: at('spare') }
    })
    const running = run()
    await turn()
    gateway.models.prepare({ models: { other: { targets: at('spare') } }, hash: 'abc' })()
    t.equal(gateway.models.hash, 'abc')
    t.type(await fail(), ModelNotFound)
    await run({ ...ask, model: 'other' })
    open()
    t.equal((await running).facts.target?.provider.name, 'spare')
  })

  t.test('that has a fault leaves everything as it was', async t => {
    const { gateway, run, state } = await models(t, [scripted('up')], {
      test: { targets: [{ provider: 'up', model: 'm', concurrency: 3 }] }
    })
    const before = gateway.targets.list()
    for (const [fault, broken] of [
      [/there is no model 'nowhere'/, { targets: [{ provider: 'up', model: 'm' }], fallbacks: ['nowhere'] }],
      [/is not a model name/, { targets: [{ provider: 'up', model: 'a b' }] }]
    ] as const) {
      const table = { models: { new: { targets: [{ provider: 'up', model: 'new' }] }, broken } }
      t.throws(() => gateway.models.prepare(table), { message: fault })
    }
    gateway.models.prepare({ models: { new: { targets: at('up') } } })
    t.strictSame(gateway.targets.list(), before)
    t.equal(state('up/m').places.room?.concurrency, 3)
    await run()
  })

  t.test('that leaves a target out forgets what was known of it', async t => {
    const { gateway } = await models(t, [scripted('up')], { test: { targets: at('up') } })
    gateway.models.prepare({ models: { test: { targets: [{ provider: 'up', model: 'other' }] } } })()
    t.strictSame(gateway.targets.readiness(), { up: ['up/other'], down: [] })
  })

  t.test('without aliases takes names of the form provider/model', async t => {
    const up = scripted('up')
    const { gateway, run } = await models(t, [up], { test: { targets: at('up') } })
    gateway.models.prepare({})()
    await run({ ...ask, model: 'up/x' })
    t.strictSame(modelsOf(up), ['x'])
  })
})
