import { once } from 'node:events'
import { stdout } from 'node:process'
import Fastify from 'fastify'
import gateway from '../../../plugins/gateway/index.ts'
import ledger from '../../../plugins/ledger/index.ts'
import routing from '../../../plugins/routing/index.ts'
import store from '../../../plugins/store/index.ts'
import { ask, askStream, says, scripted, textOf, tokens } from '../kernel.ts'

// A process that makes calls until it is killed: `node killed.ts DIRECTORY`. Prints the id of each call that has ended for
// its caller, one a line, and `ready` first.

const directory = process.argv[2] ?? '.'
const app = Fastify()
await app.register(gateway)
await app.register(routing, { models: { test: { targets: [{ provider: 'up', model: 'm' }] } } })
app.gateway.providers.register(scripted('up', says('one two three', tokens(10, 3))))
app.gateway.accountWith({ cost: (_, usage) => usage.output * 7 })
await app.register(store, { url: `sqlite:${directory}/gateway.db`, lockWait: 5_000 })
await app.register(ledger, {
  durability: 'process',
  onClientGone: 'abort',
  retention: 86_400_000,
  directory: `${directory}/journal`,
  shared: false,
  lease: 10_000
})
await app.ready()
stdout.write('ready\n')

async function client(index: number): Promise<void> {
  for (;;) {
    const caller = {
      id: app.gateway.newId(),
      principal: { tenant: `t${index}`, key: null, kind: 'key' as const, scopes: ['chat'] },
      signal: new AbortController().signal,
      origin: { lane: 'http' as const }
    }
    await textOf(await app.gateway.complete(index % 2 === 0 ? ask : askStream, caller))
    if (!stdout.write(`${caller.id}\n`)) await once(stdout, 'drain')
  }
}

await Promise.all(Array.from({ length: 8 }, (_, index) => client(index)))
