import t from 'tap'
import { tableOf } from '../../schemas/changes.ts'
import { ConfigError, type Environment, readConfig } from '../../schemas/config.ts'

const echo = { type: 'echo' as const }
const target = (provider: string, model = 'echo') => ({ provider, model })
const started = {
  providers: {
    echo,
    off: { ...echo, enabled: false },
    up: { type: 'openai-compatible', baseUrl: 'https://up.example', apiKeys: ['sk-plain'] }
  },
  models: { chat: { targets: [target('echo')] } },
  tasks: { vitals: 'chat' },
  defaultModel: 'chat'
}

/** The table of a file that has changed since the start; what is undefined is not in it any more. */
function table(change: object, before: object = started, env?: Environment) {
  return tableOf(readConfig(before, env), readConfig({ ...before, ...change }, env))
}

function faults(change: object, before: object = started): readonly string[] {
  try {
    table(change, before)
    return []
  } catch (error) {
    return error instanceof ConfigError ? error.faults : [`${error}`]
  }
}

t.test('a file that has not changed is the same table, and nothing waits for a restart', async t => {
  const { settings, hash } = readConfig(started)
  const { models, tasks, defaultModel } = settings
  t.strictSame(table({}), { models, tasks, defaultModel, hash, restart: [] })
})

t.test('models, tasks and the default model count at once, with their defaults', async t => {
  const change = { models: { other: { targets: [target('echo')] } }, tasks: {}, defaultModel: undefined }
  const { models, tasks, defaultModel, restart, hash } = table(change)
  t.match(models, { other: { retries: 2, timeouts: { total: 600_000 } } })
  t.strictSame([Object.keys(models ?? {}), tasks, defaultModel, restart], [['other'], {}, undefined, []])
  t.equal(hash, readConfig({ ...started, ...change }).hash)
})

t.test('everything else is named, two keys deep, and only that', async t => {
  const changes: Array<[object, string[]]> = [
    [{ server: { port: 1, bodyLimit: '1mb' } }, ['server.port', 'server.bodyLimit']],
    [{ log: { level: 'warn' } }, ['log.level']],
    [{ store: false }, ['store']],
    [{ redis: 'redis://a' }, ['redis']],
    [{ providers: { ...started.providers, echo: { ...echo, words: 1 } } }, ['providers.echo']],
    [{ providers: { ...started.providers, more: echo } }, ['providers.more']],
    [{ providers: { echo, off: started.providers.off } }, ['providers.up']],
    [{ providers: { ...started.providers, up: { ...started.providers.up, apiKeys: ['sk-other'] } } }, ['providers.up']],
    [{ tenants: { acme: {} } }, ['tenants.acme']],
    [{ tenants: { public: { active: false } } }, ['tenants.public']],
    [{ tenants: { 'a@b.c': { keys: ['k'] } } }, ['tenants["a@b.c"]']],
    [{ routing: { probes: {} } }, ['routing.probes']],
    [{ budget: { dailyLimitUsd: 1 } }, ['budget']],
    [{ plugins: { auth: { anonymousTenant: false }, cache: true } }, ['plugins.auth', 'plugins.cache']]
  ]
  for (const [change, paths] of changes) t.strictSame(table(change).restart, paths, JSON.stringify(change))
})

t.test('what is written otherwise and means the same needs no restart', async t => {
  const change = {
    server: { shutdownGrace: 10_000 },
    plugins: { ledger: true },
    providers: { ...started.providers, echo: { ...echo, words: 16 } }
  }
  t.strictSame(table(change).restart, [])
})

t.test('a secret that has changed is a restart, and is not shown', async t => {
  const before = { ...started, plugins: { auth: { adminToken: 'env:TOKEN' } } }
  const { restart, ...rest } = tableOf(
    readConfig(before, { TOKEN: 'one-secret' }),
    readConfig(before, { TOKEN: 'another' })
  )
  t.strictSame(restart, ['plugins.auth'])
  t.notMatch(JSON.stringify(rest), /one-secret|another|sk-plain/)
})

t.test('while something waits for a restart the hash is that of what runs', async t => {
  const models = { more: { targets: [target('echo')] } }
  const only = { ...started, tasks: {}, defaultModel: undefined, models }
  const both = table({ models, tasks: {}, defaultModel: undefined, server: { port: 1 } })
  t.equal(both.hash, readConfig(only).hash, 'the table of the file in the configuration of the start')
  t.not(both.hash, readConfig({ ...only, server: { port: 1 } }).hash)
  t.equal(table({ server: { port: 1 } }).hash, readConfig(started).hash, 'nothing of this runs')
})

t.test('a target of a provider that does not run is a fault: it would be an alias without targets', async t => {
  const words = (path: string, found: string) =>
    `${path}: found "${found}"; allowed: a provider that runs; one that is new, or has been switched on, needs a restart`
  const more = { providers: { ...started.providers, more: echo, off: echo } }
  t.strictSame(
    faults({
      ...more,
      models: { chat: { targets: [target('echo'), target('more')] }, 'b.c': { targets: [target('off')] } }
    }),
    [words('models.chat.targets[1].provider', 'more'), words('models["b.c"].targets[0].provider', 'off')]
  )
  t.strictSame(faults(more), [], 'as long as nothing names them')
  const direct = { providers: { echo } }
  t.strictSame(
    faults(
      { providers: { echo, more: echo }, tasks: { vitals: 'more/m', labs: 'echo/m' }, defaultModel: 'more/m' },
      direct
    ),
    [words('tasks.vitals', 'more/m'), words('defaultModel', 'more/m')]
  )
})

t.test('a provider that is off in the file is left out, as at a start', async t => {
  t.strictSame(faults({ models: { chat: { targets: [target('off')] } } }), [])
})

t.test('a name that is only taken after a restart is a fault', async t => {
  t.strictSame(faults({ routing: { passThrough: true }, defaultModel: 'echo/m' }), [
    'defaultModel: found "echo/m"; allowed: a name of models; routing.passThrough needs a restart'
  ])
  const before = { ...started, routing: { passThrough: true } }
  t.strictSame(faults({ defaultModel: 'echo/m' }, before), [])
  t.strictSame(faults({ models: {}, tasks: {}, defaultModel: 'echo/m' }), [], 'without aliases it is taken')
})

t.test('names from everywhere harm nothing', async t => {
  const models = { constructor: { targets: [target('echo')] }, toString: { targets: [target('echo')] } }
  t.strictSame(table({ models, tasks: { valueOf: 'toString' }, defaultModel: 'constructor' }).tasks, {
    valueOf: 'toString'
  })
})
