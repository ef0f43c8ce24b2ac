import t, { type Test } from 'tap'
import budgets from '../../../plugins/budgets/index.ts'
import pricing from '../../../plugins/pricing/index.ts'
import type { ModelOptions } from '../../../plugins/routing/index.ts'
import { InvalidRequest, UpstreamError } from '../../../schemas/errors.ts'
import { ask, askStream, fails, says, scripted, textOf, tokens } from '../kernel.ts'
import { at, ends, modelsOf, stage, status } from './kit.ts'

const broken = fails(new UpstreamError('broken'))

/** Aliases that are called as their only model, with these fallbacks; all of them fail. */
async function failing(t: Test, aliases: Record<string, string[]>) {
  const up = scripted('up', broken)
  const models = Object.entries(aliases).map(([alias, fallbacks]): [string, ModelOptions] => [
    alias,
    { targets: [{ provider: 'up', model: alias }], fallbacks, retries: 0 }
  ])
  const found = await stage(t, { providers: [up], models: Object.fromEntries(models) })
  return { ...found, asked: () => modelsOf(up) }
}

t.test('fallbacks', async t => {
  t.test('are asked in their order once no target has answered', async t => {
    const { fail, asked } = await failing(t, { test: ['b', 'c'], b: [], c: [] })
    await fail()
    t.strictSame(asked(), ['test', 'b', 'c'])
  })

  t.test('are followed by theirs, each alias once', async t => {
    const { fail, asked } = await failing(t, { test: ['b', 'c'], b: ['d', 'c'], c: ['e', 'd'], d: [], e: [] })
    await fail()
    t.strictSame(asked(), ['test', 'b', 'c', 'd', 'e'])
  })

  t.test('come after the repeats of the alias that was asked for', async t => {
    const up = scripted('up', broken)
    const { run, pauses } = await stage(t, {
      providers: [up, scripted('spare')],
      models: { test: { targets: at('up'), fallbacks: ['spare'], retries: 2 }, spare: { targets: at('spare') } }
    })
    const answer = await run()
    t.equal(await textOf(answer), 'spare says')
    t.equal(up.attempts.length, 3)
    t.equal(pauses.length, 2)
    t.match(answer.facts, { attempts: 4, target: { provider: { name: 'spare' } } })
  })

  t.test('are each repeated as their own alias says', async t => {
    const up = scripted('up', broken)
    const { fail } = await stage(t, {
      providers: [up],
      models: {
        test: { targets: [{ provider: 'up', model: 'a' }], fallbacks: ['b'], retries: 0 },
        b: { targets: [{ provider: 'up', model: 'b' }], retries: 2 }
      }
    })
    await fail()
    t.strictSame(modelsOf(up), ['a', 'b', 'b', 'b'])
  })

  t.test('answer streams up to the first token', async t => {
    const { run, expenses } = await stage(t, {
      providers: [scripted('up', broken), scripted('spare')],
      models: { test: { targets: at('up'), fallbacks: ['spare'], retries: 0 }, spare: { targets: at('spare') } }
    })
    t.equal(await textOf(await run(askStream)), 'spare says')
    t.strictSame(ends(expenses), ['up failed', 'spare settled'])
  })

  t.test('are asked at once where every target is left alone', async t => {
    const up = scripted('up', broken)
    const { run, pauses } = await stage(t, {
      providers: [up, scripted('spare')],
      models: { test: { targets: at('up'), fallbacks: ['spare'], retries: 0 }, spare: { targets: at('spare') } }
    })
    for (let call = 0; call < 8; call++) t.equal(await textOf(await run()), 'spare says')
    t.equal(up.attempts.length, 5)
    t.strictSame(pauses, [])
  })

  t.test('are not asked for a fault of the request', async t => {
    const spare = scripted('spare')
    const { fail } = await stage(t, {
      providers: [scripted('up', fails(status(400))), spare],
      models: { test: { targets: at('up'), fallbacks: ['spare'] }, spare: { targets: at('spare') } }
    })
    t.match(await fail(), { statusCode: 400 })
    t.equal(spare.attempts.length, 0)
  })

  t.test('are asked when an adapter cannot put the request into the words of its vendor', async t => {
    const { run } = await stage(t, {
      providers: [scripted('up', fails(new InvalidRequest('This vendor gives one choice.'))), scripted('spare')],
      models: { test: { targets: at('up'), fallbacks: ['spare'] }, spare: { targets: at('spare') } }
    })
    t.equal(await textOf(await run()), 'spare says')
  })

  t.test('have their own deadlines and their own output cap, where it is the lower one', async t => {
    const up = scripted('up', broken)
    const { fail } = await stage(t, {
      providers: [up],
      models: {
        test: {
          targets: [{ provider: 'up', model: 'a' }],
          fallbacks: ['low', 'high'],
          retries: 0,
          maxOutputTokens: 100,
          timeouts: { headers: 1_000 }
        },
        low: {
          targets: [{ provider: 'up', model: 'b' }],
          retries: 0,
          maxOutputTokens: 50,
          timeouts: { headers: 2_000 }
        },
        high: { targets: [{ provider: 'up', model: 'c' }], retries: 0, maxOutputTokens: 5_000 }
      }
    })
    await fail()
    t.strictSame(
      up.attempts.map(({ request, timeouts }) => [request.model, request.max_completion_tokens, timeouts.headers]),
      [
        ['a', 100, 1_000],
        ['b', 50, 2_000],
        ['c', 100, 60_000]
      ]
    )
  })

  t.test('answer for a model whose own targets are all switched off', async t => {
    const { run } = await stage(t, {
      providers: [scripted('spare')],
      models: { test: { targets: at('off'), fallbacks: ['spare'] }, spare: { targets: at('spare') } }
    })
    t.equal(await textOf(await run()), 'spare says')
  })

  t.test('leave an image counted at the highest bound of all of them', async t => {
    const { run, gateway } = await stage(t, {
      providers: [scripted('up')],
      models: {
        test: { targets: at('up'), fallbacks: ['spare'], inputTokensPerImage: 10 },
        spare: { targets: at('up'), inputTokensPerImage: 4_000 }
      }
    })
    await run()
    t.equal(gateway.models.resolve(ask).inputTokensPerImage, 4_000)
  })

  t.test('that go in a circle are refused at the start', async t => {
    await t.rejects(failing(t, { test: ['b'], b: ['c'], c: ['test'] }), {
      message: /^models\.c\.fallbacks: 'test' leads back to itself\./
    })
    await t.rejects(failing(t, { test: ['test'] }), { message: /^models\.test\.fallbacks: 'test' leads back/ })
  })

  for (const name of ['nowhere', 'toString', '__proto__']) {
    t.test(`that are not there are refused at the start: ${name}`, async t => {
      await t.rejects(failing(t, { test: [name] }), {
        message: new RegExp(`^models\\.test\\.fallbacks: there is no model '${name}'\\.`)
      })
    })
  }

  t.test('of a thousand aliases in a row are compiled quickly', async t => {
    const aliases: Record<string, string[]> = { test: ['m0'] }
    for (let index = 0; index < 1_000; index++) aliases[`m${index}`] = index < 999 ? [`m${index + 1}`] : []
    const started = performance.now()
    const { gateway } = await failing(t, aliases)
    t.equal(gateway.models.resolve(ask).targets.length, 1_001)
    t.ok(performance.now() - started < 5_000)
  })

  t.test('that meet again and again are compiled quickly', async t => {
    const aliases: Record<string, string[]> = { test: ['a0', 'b0'] }
    for (let index = 0; index < 40; index++) {
      const next = index < 39 ? [`a${index + 1}`, `b${index + 1}`] : []
      aliases[`a${index}`] = next
      aliases[`b${index}`] = next
    }
    const { gateway } = await failing(t, aliases)
    t.equal(gateway.models.resolve(ask).targets.length, 81)
  })
})

t.test('the hold of a call', async t => {
  const price = (input: number, output: number) => ({ price: { input, output } })
  const models: Record<string, ModelOptions> = {
    test: { targets: [{ provider: 'up', model: 'cheap', ...price(1, 1) }], fallbacks: ['spare'], retries: 0 },
    spare: { targets: [{ provider: 'up', model: 'dear', ...price(100, 100) }] },
    alone: { targets: [{ provider: 'up', model: 'cheap', ...price(1, 1) }] }
  }

  t.test('covers the dearest target that it can reach, a fallback too', async t => {
    const holds: Record<string, number> = {}
    const { run } = await stage(t, {
      providers: [scripted('up', says('x', tokens(1, 1)))],
      models,
      async before(app) {
        await app.register(pricing, { table: false })
        await app.register(budgets, { gateway: { dailyLimitUsd: 10, hardStop: true, warningThreshold: 1 } })
        app.gateway.intercept('shape', async (inference, next) => {
          const { held } = (await app.gateway.budgets?.gateway()) ?? { held: 0 }
          holds[inference.route.alias] = Number(held)
          return next(inference)
        })
      }
    })
    await run({ ...ask, max_tokens: 100 })
    await run({ ...ask, model: 'alone', max_tokens: 100 })
    t.ok(holds['alone']! > 0)
    t.equal(holds['test'], 100 * holds['alone']!)
  })

  t.test(
    'is extended for each further attempt, and a budget that ends there ends the call with its last fault',
    async t => {
      const up = scripted('up', broken)
      const { fail, expenses, gateway } = await stage(t, {
        providers: [up],
        models,
        async before(app) {
          await app.register(pricing, { table: false })
          // Enough for one attempt at the dear target, not for a second one.
          await app.register(budgets, { gateway: { dailyLimitUsd: 0.02, hardStop: true, warningThreshold: 1 } })
        }
      })
      const error = await fail({ ...ask, max_tokens: 150 })
      t.match(error, { wire: 'upstream_error' })
      t.strictSame(modelsOf(up), ['cheap'])
      t.strictSame(ends(expenses), ['up failed'])
      t.match(await gateway.budgets?.gateway(), { held: 0, spent: 0 })
    }
  )

  t.test('is not taken for a model that only an alias besides reaches', async t => {
    const { gateway } = await stage(t, { providers: [scripted('up')], models })
    t.strictSame(
      gateway.models.resolve({ ...ask, model: 'alone' }).targets.map(({ model }) => model),
      ['cheap']
    )
  })
})

t.test('lists of allowed models are about the name that was asked for', async t => {
  const { run, fail } = await stage(t, {
    providers: [scripted('up', broken), scripted('spare')],
    models: { test: { targets: at('up'), fallbacks: ['spare'], retries: 0 }, spare: { targets: at('spare') } },
    before: app =>
      app.gateway.intercept('authorize', (inference, next) => {
        if (inference.route.alias !== 'test') throw new Error(`${inference.route.alias} is not allowed`)
        return next(inference)
      })
  })
  t.equal(await textOf(await run()), 'spare says')
  t.match(await fail({ ...ask, model: 'spare' }), { message: 'spare is not allowed' })
})
