import { Type } from '@sinclair/typebox'
import t, { type Test } from 'tap'
import type { ModelOptions } from '../../../plugins/routing/index.ts'
import { AuditAnswer, ListAnswer, ReloadAnswer, TargetAnswer } from '../../../schemas/admin-answers.ts'
import { detail, StoreUnavailable, UpstreamError, UpstreamRateLimited } from '../../../schemas/errors.ts'
import { ConfigError } from '../../../schemas/faults.ts'
import type { RoutingTable } from '../../../schemas/routing.ts'
import { closed } from '../../../schemas/shape.ts'
import { build, hello } from '../../helper.ts'
import { askStream, fails, patient, ask as request, says, scripted, textOf, tokens } from '../kernel.ts'
import { asker, books, fits, host, type Routed } from './fakes.ts'

const TargetList = closed({ data: Type.Array(TargetAnswer) })
const to = (...targets: string[]): ModelOptions => ({
  retries: 0,
  targets: targets.map(target => {
    const [provider = '', model = ''] = target.split('/')
    return { provider, model }
  })
})

/** A gateway whose administrator asks, and whose calls are made in process. */
async function start(t: Test, routed: Routed, held = books()) {
  const { app, ask } = await host(t, held, [], routed)
  await app.ready()
  const call = (model: string, more = {}) =>
    app.gateway.complete({ ...request, model, ...more }, app.gateway.caller()).catch((error: Error) => error)
  const targets = async (query = '') => {
    const response = await ask(`GET /api/targets${query}`)
    t.equal(response.statusCode, 200, response.body)
    fits(t, TargetList, response.json())
    return response.json().data
  }
  return { app, ask, call, targets, books: held }
}

t.test('GET /api/targets', async t => {
  t.test('has nothing to say where there are none', async t => {
    const { targets } = await start(t, {})
    t.strictSame(await targets(), [])
  })

  t.test('shows a target that nobody has asked yet', async t => {
    const { targets } = await start(t, { providers: [scripted('up')], routing: { models: { test: to('up/m') } } })
    const unknown = { p50: null, p95: null }
    t.strictSame(await targets(), [
      {
        provider: 'up',
        model: 'm',
        state: 'closed',
        open_until: null,
        in_flight: 0,
        queued: 0,
        attempts: 0,
        failures: 0,
        success_rate: null,
        latency_ms: unknown,
        first_token_ms: unknown,
        last_error: null,
        keys: [{ key: 1, resting: null, until: null }]
      }
    ])
  })

  t.test('shows what calls came to: rate, times, and those that run', async t => {
    const failing = fails(new UpstreamError('it broke.'))
    const up = scripted('up', says('one two', tokens(1, 1)), says('one two', tokens(1, 1)), says('x'), failing, patient)
    const { call, targets, app } = await start(t, { providers: [up], routing: { models: { test: to('up/m') } } })
    await call('test')
    await textOf(await app.gateway.complete(askStream, app.gateway.caller()))
    await call('test')
    await call('test')
    const leaving = new AbortController()
    const running = app.gateway.complete(request, app.gateway.caller({ signal: leaving.signal })).catch(() => {})
    const [target] = await targets()
    t.match(target, { attempts: 5, failures: 1, in_flight: 1, success_rate: 0.75, state: 'closed' })
    t.match(target.last_error, { code: 'upstream_error', message: /it broke/ })
    for (const times of [target.latency_ms, target.first_token_ms]) {
      t.ok(times.p50 >= 0 && times.p95 >= times.p50, JSON.stringify(times))
    }
    leaving.abort()
    await running
    t.match(await targets(), [{ in_flight: 0, attempts: 5 }])
  })

  t.test('shows calls that wait for a place', async t => {
    const models = { test: { targets: [{ provider: 'up', model: 'm', concurrency: 1 }] } }
    const { targets, app } = await start(t, { providers: [scripted('up', patient)], routing: { models } })
    const leaving = new AbortController()
    const caller = app.gateway.caller({ signal: leaving.signal })
    const calls = [1, 2, 3].map(() => app.gateway.complete(request, caller).catch(() => {}))
    t.match(await targets(), [{ in_flight: 1, queued: 2 }])
    leaving.abort()
    await Promise.all(calls)
  })

  t.test('shows a target that is left alone, until when, and that it is tried again', async t => {
    let time = Date.UTC(2026, 10, 21)
    const routing = { models: { test: to('up/m', 'up/other') }, routing: { breaker: { failures: 2 } }, now: () => time }
    const up = scripted('up', fails(new UpstreamError('it broke.')))
    const { call, targets } = await start(t, { providers: [up], routing })
    await call('test')
    await call('test')
    t.match(await targets(), [
      { model: 'm', state: 'open', open_until: '2026-11-21T00:00:01.000Z', success_rate: 0 },
      { model: 'other', state: 'open' }
    ])
    time += 1_000
    t.match(await targets('?model=m'), [{ state: 'half-open' }])
  })

  t.test('shows which keys rest, why and until when, by their place', async t => {
    const time = Date.UTC(2026, 10, 21)
    const refused = detail(new UpstreamError('it refuses the key.'), { blame: 'key', upstream: 401 })
    const limited = detail(new UpstreamRateLimited(), { retryAfter: 30_000 })
    const up = { ...scripted('up', fails(refused), fails(limited), says('hello')), keys: 3 }
    const routing = { models: { test: to('up/m') }, now: () => time }
    const { call, targets } = await start(t, { providers: [up], routing })
    await call('test')
    const [{ keys }] = await targets()
    t.strictSame(keys.map(({ resting, until }: { resting: string; until: string }) => [resting, until]).toSorted(), [
      [null, null],
      ['limited', '2026-11-21T00:00:30.000Z'],
      ['refused', '2026-11-21T00:01:00.000Z']
    ])
    t.strictSame(
      keys.map(({ key }: { key: number }) => key),
      [1, 2, 3]
    )
  })

  t.test('is narrowed by provider and model', async t => {
    const models = { a: to('one/m', 'two/m'), b: to('two/n') }
    const { targets, ask } = await start(t, { providers: [scripted('one'), scripted('two')], routing: { models } })
    const names = async (query: string) =>
      (await targets(query)).map(({ provider, model }: Record<string, string>) => `${provider}/${model}`)
    t.strictSame(await names(''), ['one/m', 'two/m', 'two/n'])
    t.strictSame(await names('?provider=two'), ['two/m', 'two/n'])
    t.strictSame(await names('?model=m'), ['one/m', 'two/m'])
    t.strictSame(await names('?provider=two&model=n'), ['two/n'])
    t.strictSame(await names('?provider=nobody'), [])
    t.equal((await ask('GET /api/targets?providers=two')).json().error.param, 'providers')
  })

  t.test('repeats no key of ours that a vendor repeats', async t => {
    const failed = new UpstreamError('invalid user: gw_4f7k2m9q0x1z_secretsecret')
    const { call, targets } = await start(t, {
      providers: [scripted('up', fails(failed))],
      routing: { models: { test: { ...to('up/m'), retries: 0 } } }
    })
    await call('test')
    const [{ last_error }] = await targets()
    t.match(last_error.message, 'invalid user: gw_…')
    t.notMatch(JSON.stringify(last_error), 'secretsecret')
  })

  t.test('forgets what a table that has gone knew, and keeps what stays', async t => {
    const models = { a: to('up/m'), b: to('up/n') }
    const { call, targets, app } = await start(t, { providers: [scripted('up')], routing: { models } })
    await call('a')
    app.gateway.models.replace({ models: { c: to('up/m') } })
    t.match(await targets(), [{ model: 'm', attempts: 1 }])
    t.equal((await targets()).length, 1)
  })
})

type Table = RoutingTable<ModelOptions>
const first: Table = { models: { test: to('up/m') }, hash: 'a'.repeat(64) }
const second: Table = {
  models: { test: to('up/n'), more: to('up/m') },
  tasks: { vitals: 'test' },
  defaultModel: 'more',
  hash: 'b'.repeat(64),
  restart: ['providers.up']
}

/** A gateway that is started with `first`; what it reads again is what the test says. */
async function reloadable(t: Test, read: () => Promise<Table> | Table, held = books()) {
  const lines: Array<readonly [string, object, string]> = []
  const level = (name: string) => (details: object, message: string) => void lines.push([name, details, message])
  const log = { error: level('error'), warn: level('warn'), info: level('info'), debug: level('debug') }
  const up = scripted('up')
  const routing = { ...first, source: async () => read() }
  return { ...(await start(t, { providers: [up], routing, log }, held)), up, lines }
}

t.test('POST /api/routing/reload', async t => {
  t.test('puts what is written now in place, says what has changed and writes down who did it', async t => {
    const { ask, call, up, app } = await reloadable(t, () => second)
    t.equal((await call('more')) instanceof Error, true)
    const response = await ask('POST /api/routing/reload', { secret: 'gw_admin' })
    t.equal(response.statusCode, 200, response.body)
    fits(t, ReloadAnswer, response.json())
    t.strictSame(response.json(), {
      changes: [
        { path: 'models.test', before: to('up/m'), after: to('up/n') },
        { path: 'models.more', after: to('up/m') },
        { path: 'tasks.vitals', after: 'test' },
        { path: 'defaultModel', after: 'more' }
      ],
      restart: ['providers.up'],
      hash: 'b'.repeat(64),
      applied: true
    })
    await call('more')
    await call('test')
    t.strictSame(
      up.attempts.map(attempt => attempt.request.model),
      ['m', 'n']
    )
    t.equal(app.gateway.models.hash, 'b'.repeat(64))

    const audit = (await ask('GET /api/audit')).json()
    fits(t, ListAnswer(AuditAnswer), audit)
    t.match(audit.data, [{ actor: 'admin-key', action: 'routing.reload', subject: 'routing' }])
    t.strictSame(audit.data[0].before, { config: 'a'.repeat(64), paths: ['models.test'] })
    const paths = ['models.test', 'models.more', 'tasks.vitals', 'defaultModel']
    t.strictSame(audit.data[0].after, { config: 'b'.repeat(64), paths })
  })

  t.test('with dryRun says the same and does nothing', async t => {
    const { ask, call, books, app, lines } = await reloadable(t, () => second)
    const response = await ask('POST /api/routing/reload?dryRun=true')
    t.match(response.json(), { applied: false, hash: 'b'.repeat(64), restart: ['providers.up'] })
    t.equal(response.json().changes.length, 4)
    t.type(await call('more'), Error)
    t.equal(app.gateway.models.hash, 'a'.repeat(64))
    t.strictSame([books.audits, lines], [[], []])
    t.equal((await ask('POST /api/routing/reload?dryRun=false')).json().applied, true)
  })

  t.test('that finds nothing new changes nothing, and writes nothing down', async t => {
    const { ask, books, lines } = await reloadable(t, () => structuredClone(first))
    const answer = (await ask('POST /api/routing/reload')).json()
    t.strictSame(answer, { changes: [], restart: [], hash: 'a'.repeat(64), applied: false })
    t.strictSame([books.audits, lines], [[], []])
  })

  t.test('that finds the same written otherwise takes its hash over', async t => {
    const { ask, app } = await reloadable(t, () => ({ ...first, hash: 'c'.repeat(64) }))
    t.match((await ask('POST /api/routing/reload')).json(), { changes: [], applied: true })
    t.equal(app.gateway.models.hash, 'c'.repeat(64))
  })

  t.test('with faults is 400 with each of them, and nothing has changed', async t => {
    const faults = [
      'models.a.retries: found -1; allowed: a whole number',
      'tasks.b: found "c"; allowed: a name of models'
    ]
    let read: () => Table = () => {
      throw new ConfigError(faults)
    }
    const { ask, call, books, app } = await reloadable(t, () => read())
    for (const dryRun of [true, false]) {
      const response = await ask(`POST /api/routing/reload?dryRun=${dryRun}`)
      t.equal(response.statusCode, 400)
      t.match(response.json().error, { type: 'invalid_request_error', message: faults.join('\n'), code: null })
    }
    t.notOk((await call('test')) instanceof Error)
    t.strictSame([app.gateway.models.hash, books.audits], ['a'.repeat(64), []])
    read = () => second
    t.equal((await ask('POST /api/routing/reload')).json().applied, true, 'it may be tried again')
  })

  t.test('of a table that is no table is 400 too, in a dry run as well, and touches no target', async t => {
    const broken = {
      models: {
        test: { ...to('up/n'), targets: [{ provider: 'up', model: 'm', concurrency: 1 }] },
        a: { ...to('up/m'), fallbacks: ['b'] },
        b: { ...to('up/new'), fallbacks: ['a'] },
        c: { ...to('up/m'), fallbacks: ['nowhere'] },
        d: { targets: [{ provider: 'up', model: 'no\nname' }] }
      }
    }
    const { ask, targets, app } = await reloadable(t, () => broken)
    for (const query of ['?dryRun=true', '']) {
      const response = await ask(`POST /api/routing/reload${query}`)
      t.equal(response.statusCode, 400)
      t.match(response.json().error.message, /'a' leads back to itself/)
      t.match(response.json().error.message, /there is no model 'nowhere'/)
      t.match(response.json().error.message, /is not a model name/)
    }
    t.strictSame(
      (await targets()).map(({ model }: { model: string }) => model),
      ['m']
    )
    const calls = [1, 2].map(() => app.gateway.complete(request, app.gateway.caller()))
    t.match(app.gateway.targets.list(), [{ in_flight: 2, queued: 0 }], 'its limit is what it was')
    await Promise.all(calls)
  })

  t.test('that fails otherwise is 500, and says nothing of why', async t => {
    const { ask, app } = await reloadable(t, () => {
      throw new Error('a secret of the disk')
    })
    const response = await ask('POST /api/routing/reload')
    t.equal(response.statusCode, 500)
    t.notMatch(response.body, 'secret')
    t.equal(app.gateway.models.hash, 'a'.repeat(64))
  })

  t.test('of two at once the later one wins, and each says what it has done', async t => {
    const waiting: Array<(table: Table) => void> = []
    const { ask, app } = await reloadable(t, () => new Promise(resolve => waiting.push(resolve)))
    const next = async () => {
      while (waiting.length === 0) await new Promise(resolve => setImmediate(resolve))
      return waiting.shift()
    }
    const one = ask('POST /api/routing/reload')
    const give = await next()
    const other = ask('POST /api/routing/reload')
    for (let turn = 0; turn < 20; turn++) await new Promise(resolve => setImmediate(resolve))
    t.strictSame(waiting, [], 'it has not read yet')
    give?.(second)
    ;(await next())?.({ ...first, hash: 'c'.repeat(64) })
    t.match((await one).json(), { applied: true, hash: 'b'.repeat(64) })
    const { changes, hash } = (await other).json()
    t.equal(hash, 'c'.repeat(64))
    t.match(changes, [{ path: 'models.test', before: to('up/n'), after: to('up/m') }, {}, {}, {}])
    t.equal(app.gateway.models.hash, 'c'.repeat(64))
  })

  t.test('holds while the database is away, and the log says who it was', async t => {
    const { ask, app, lines } = await reloadable(
      t,
      () => second,
      books({ failure: new StoreUnavailable('it is away') })
    )
    t.equal((await ask('POST /api/routing/reload')).json().applied, true)
    t.equal(app.gateway.models.hash, 'b'.repeat(64))
    t.match(lines, [
      [
        'info',
        { actor: 'admin', config: 'b'.repeat(12), changes: ['models.test', 'models.more', String, String] },
        String
      ],
      ['error', { actor: 'admin' }, /could not be written to the audit/],
      ['warn', { restart: ['providers.up'] }, String]
    ])
  })

  t.test('is 409 in an app that gave its table as an object, and says what to call', async t => {
    const { ask } = await start(t, { providers: [scripted('up')], routing: first })
    for (const query of ['', '?dryRun=true']) {
      const response = await ask(`POST /api/routing/reload${query}`)
      t.equal(response.statusCode, 409)
      t.match(response.json().error.message, /app\.gateway\.models\.replace\(table\)/)
    }
  })

  t.test('takes no other words', async t => {
    const { ask, app } = await reloadable(t, () => second)
    for (const query of ['dryRun=yes', 'dryRun=', 'dryRun=true&dryRun=false', 'dryrun=true', 'force=1']) {
      t.equal((await ask(`POST /api/routing/reload?${query}`)).statusCode, 400, query)
    }
    t.equal((await ask('GET /api/routing/reload')).statusCode, 404)
    t.equal(app.gateway.models.hash, 'a'.repeat(64))
  })
})

for (const route of ['GET /api/targets', 'POST /api/routing/reload']) {
  t.test(`${route} is the administrator's alone, and is kept by nobody`, async t => {
    const { ask, app } = await reloadable(t, () => second)
    t.equal((await ask(route, { secret: null })).statusCode, 401)
    t.equal((await ask(route, { secret: 'wrong' })).statusCode, 401)
    t.equal((await ask(route, { secret: 'gw_chat' })).json().error.code, 'missing_scope')
    t.equal(app.gateway.models.hash, 'a'.repeat(64))
    t.equal((await ask(route)).headers['cache-control'], 'no-store')
  })
}

t.test('in the whole app the targets are those of the configuration, and calls leave their mark', async t => {
  const adminToken = 'the-token-of-the-operator'
  const app = await build(t, {
    models: { test: { targets: [{ provider: 'echo', model: 'echo' }] } },
    plugins: { auth: { adminToken } }
  })
  await app.ready()
  const ask = asker(app, adminToken)
  t.equal((await ask('POST /v1/chat/completions', { body: hello })).statusCode, 200)
  const answer = (await ask('GET /api/targets')).json()
  fits(t, TargetList, answer)
  t.match(answer.data, [{ provider: 'echo', model: 'echo', attempts: 1, success_rate: 1, state: 'closed' }])
  t.match((await app.inject('/ready')).json(), { checks: { targets: { ok: true, up: ['echo/echo'], down: [] } } })
})
