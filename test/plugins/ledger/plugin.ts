import { readdirSync, readFileSync, type writeSync as Write, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { UpstreamError } from '../../../schemas/errors.ts'
import { chunkFrames } from '../../../schemas/frames.ts'
import { ask, askStream, chunk, fails, feed, finish, patient, says, scripted, textOf, tokens } from '../kernel.ts'
import { kept } from './gateway.ts'

const priced = { cost: (_: unknown, usage: { output: number }) => usage.output * 7 }

/** The event loop's side: what the plugin writes, and when. */
export function pluginTests(t: Test): void {
  t.test('a call is in the journal before its provider is asked, and settled before its answer leaves', async t => {
    const seen: string[] = []
    const journal = () => {
      const directory = join(books.directory, 'journal')
      return readdirSync(directory)
        .map(name => readFileSync(join(directory, name), 'utf8'))
        .join('')
    }
    const answer = says('hello', tokens(10, 3))
    const up = scripted('up', async attempt => {
      seen.push(journal())
      return answer(attempt)
    })
    const books = await kept(t, { providers: [up] })
    await books.gateway.complete(ask, books.caller({ id: 'req_json' }))
    seen.push(journal())
    await textOf(await books.gateway.complete(askStream, books.caller({ id: 'req_sse' })))
    seen.push(journal())
    t.match(seen[0], /\n\["o","req_json",.*\n$/)
    t.match(seen[1], /\n\["s","req_json",.*\n$/)
    t.match(seen[2], /\n\["o","req_sse",.*\n$/)
    t.match(seen[3], /\n\["s","req_sse",.*\n$/)
  })

  t.test('a row says who asked for what, and what it came to', async t => {
    const { gateway, caller, records } = await kept(t, {
      providers: [scripted('up', says('hello', tokens(10, 3)))],
      before: app => app.gateway.accountWith(priced)
    })
    const trace = { traceparent: '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' }
    const asked = caller({ trace })
    await gateway.complete({ ...ask, user: 'somebody', metadata: { team: 'red' } }, asked)
    const [row] = await records()
    t.match(row, {
      id: asked.id,
      tenant: 'acme',
      key: 'k1',
      model: 'test',
      stream: false,
      status: 'settled',
      httpStatus: 200,
      errorCode: null,
      cost: 21,
      usage: { input: 10, output: 3, source: 'reported' },
      traceId: '0af7651916cd43dd8448eb211c80319c',
      user: 'somebody',
      tags: { team: 'red' },
      attempts: [{ number: 1, provider: 'up', model: 'm', status: 'settled', cost: 21 }]
    })
    const [recent] = gateway.ledger!.recent('acme')
    t.match(recent, { ...row, duration: Number, attempts: [{ number: 1, status: 'settled', cost: 21 }] })
    t.match(gateway.ledger!.totals(), { requests: 1, tokensIn: 10, tokensOut: 3, cost: 21 })
  })

  t.test(
    'a row says which configuration its call was routed by, also when another one came while it waited',
    async t => {
      const target = { provider: 'up', model: 'm', concurrency: 1 }
      const models = { test: { targets: [target] } }
      const { promise, resolve } = Promise.withResolvers<void>()
      // Whoever is asked stands in the journal already.
      const asked = Promise.withResolvers<void>()
      const answer = says('hello', tokens(1, 1))
      const up = scripted('up', async attempt => {
        asked.resolve()
        await promise
        return answer(attempt)
      })
      const { gateway, caller, records } = await kept(t, { providers: [up], routing: { models, hash: 'a'.repeat(64) } })
      const call = (id: string) => gateway.complete(ask, caller({ id }))
      const calls = [call('runs'), call('waits')]
      gateway.models.replace({ models, hash: 'b'.repeat(64) })
      calls.push(call('new'))
      await asked.promise
      t.match(gateway.ledger?.recent('acme'), [{ id: 'runs', config: 'a'.repeat(12), status: 'open' }])
      t.match(
        (await records()).filter(({ status }) => status === 'open'),
        [{ id: 'runs', config: 'a'.repeat(12) }]
      )
      resolve()
      await Promise.all(calls)
      gateway.models.replace({ models })
      await call('unknown')
      const written = Object.fromEntries((await records()).map(({ id, config }) => [id, config]))
      t.strictSame(written, { runs: 'a'.repeat(12), waits: 'a'.repeat(12), new: 'b'.repeat(12), unknown: null })
      t.strictSame(
        gateway.ledger?.recent('acme').map(({ config }) => config),
        [null, 'b'.repeat(12), 'a'.repeat(12), 'a'.repeat(12)]
      )
    }
  )

  t.test('every attempt has its line, and a failure its code', async t => {
    const bad = scripted('bad', fails(new UpstreamError('it is broken')))
    const up = scripted('up', says('hello', tokens(10, 3)))
    const { gateway, caller, records } = await kept(t, {
      providers: [bad, up],
      routing: {
        models: {
          test: {
            targets: [
              { provider: 'bad', model: 'b' },
              { provider: 'up', model: 'm', weight: 0 }
            ]
          },
          broken: { targets: [{ provider: 'bad', model: 'b' }] }
        }
      },
      before: app => app.gateway.accountWith(priced)
    })
    await gateway.complete(ask, caller())
    await t.rejects(gateway.complete({ ...ask, model: 'broken' }, caller()))
    const rows = (await records()).toSorted((one, other) => one.model.localeCompare(other.model))
    t.match(rows, [
      { model: 'broken', status: 'failed', httpStatus: 502, errorCode: 'upstream_error', cost: 0 },
      {
        model: 'test',
        status: 'settled',
        cost: 21,
        attempts: [
          { number: 1, provider: 'bad', status: 'failed', errorCode: 'upstream_error', cost: 0 },
          { number: 2, provider: 'up', status: 'settled', cost: 21 }
        ]
      }
    ])
  })

  t.test('a caller that leaves is charged what it got', async t => {
    const source = feed(chunkFrames([chunk('one ')]), chunkFrames([chunk('two ')]))
    const { gateway, caller, records } = await kept(t, {
      providers: [scripted('up', source.send)],
      before: app => app.gateway.accountWith(priced)
    })
    const answer = await gateway.complete(askStream, caller())
    if (!answer.stream) throw new Error('no stream')
    await answer.frames.next()
    await answer.frames.next()
    await answer.frames.return()
    t.match(await records(), [
      {
        status: 'interrupted',
        httpStatus: 499,
        errorCode: 'cancelled',
        cost: 14,
        usage: { output: 2, source: 'estimated' }
      }
    ])
  })

  t.test('onClientGone: drain reads the answer to its end and its true usage', async t => {
    const source = feed(chunkFrames([chunk('one ')]))
    const { gateway, caller, records, store } = await kept(t, {
      providers: [scripted('up', source.send)],
      ledger: { onClientGone: 'drain' },
      before: app => app.gateway.accountWith(priced)
    })
    const answer = await gateway.complete(askStream, caller())
    if (!answer.stream) throw new Error('no stream')
    await answer.frames.next()
    await answer.frames.return()
    const usage = {
      id: 'c1',
      object: 'chat.completion.chunk' as const,
      created: 1,
      model: 'm',
      choices: [],
      usage: tokens(10, 9)
    }
    source.push(chunkFrames([finish()]), chunkFrames([usage]))
    source.end()
    while (gateway.running > 0) await new Promise(resolve => setImmediate(resolve))
    await store.ledger.folded()
    t.match(await records(), [
      { status: 'settled', httpStatus: 499, cost: 63, usage: { output: 9, source: 'reported' } }
    ])
  })

  t.test('a call that is refused before its first attempt is counted and writes nothing', async t => {
    const { gateway, caller, records } = await kept(t, {
      before: app =>
        app.gateway.intercept('admit', async () => {
          throw new UpstreamError('no')
        })
    })
    await t.rejects(gateway.complete(ask, caller()))
    t.strictSame(await records(), [])
    t.strictSame([...gateway.ledger!.refused], [['upstream_error', 1]])
    t.strictSame(gateway.ledger!.recent('acme'), [])
    t.equal(gateway.ledger!.totals().requests, 0)
  })

  t.test('running calls are seen, in memory and in the store', async t => {
    const { gateway, caller, records } = await kept(t, { providers: [scripted('up', patient)] })
    const leaving = new AbortController()
    const running = gateway.complete(ask, caller({ signal: leaving.signal }))
    await new Promise(resolve => setTimeout(resolve, 20))
    t.match(gateway.ledger!.recent('acme'), [{ status: 'open', httpStatus: null, cost: null }])
    t.match(await records(), [{ status: 'open' }])
    t.equal(gateway.ledger!.totals().requests, 1)
    leaving.abort()
    await t.rejects(running)
    t.match(gateway.ledger!.recent('acme'), [{ status: 'interrupted' }])
    t.match(await records(), [{ status: 'interrupted' }])
  })

  t.test('the last 200 of a tenant stay in memory, newest first', async t => {
    const { gateway, caller } = await kept(t)
    const ids: string[] = []
    for (let index = 0; index < 230; index++) {
      const asked = caller()
      ids.push(asked.id)
      await gateway.complete(ask, asked)
    }
    t.strictSame(
      gateway.ledger!.recent('acme').map(({ id }) => id),
      ids.slice(30).reverse()
    )
    t.strictSame(gateway.ledger!.recent('nobody'), [])
  })

  t.test('one in-process caller may make many calls at once', async t => {
    const { gateway, records, store } = await kept(t)
    const caller = gateway.caller({ tenant: 'acme' })
    await Promise.all(Array.from({ length: 5 }, () => gateway.complete(ask, caller)))
    t.strictSame(
      (await records()).map(({ id, status }) => [id, status]),
      Array.from({ length: 5 }, () => [caller.id, 'settled'])
    )
    t.strictSame((await store.ledger.verify()).differences, [])
  })

  t.test('tags that are too long or cannot be written are left out, the call is not', async t => {
    let deep: object = {}
    for (let index = 0; index < 100_000; index++) deep = { deep }
    const { gateway, caller, records } = await kept(t)
    await gateway.complete({ ...ask, metadata: { long: 'x'.repeat(20_000) }, user: 'u'.repeat(10_000) }, caller())
    await gateway.complete({ ...ask, metadata: { deep } }, caller())
    const rows = await records()
    t.strictSame(
      rows.map(({ tags }) => tags),
      [null, null]
    )
    t.same(new Set(rows.map(({ user }) => user?.length)), new Set([512, undefined]))
  })

  for (const durability of ['power', 'store'] as const) {
    t.test(`durability: ${durability}`, async t => {
      const { gateway, caller, store } = await kept(t, { ledger: { durability } })
      await Promise.all(Array.from({ length: 20 }, () => gateway.complete(ask, caller())))
      await textOf(await gateway.complete(askStream, caller()))
      if (durability === 'store') {
        const { rows } = await store.ledger.records({ status: 'settled' }, { limit: 100 })
        t.equal(rows.length, 21, 'they were in the database when their answers left')
      }
      t.strictSame((await store.ledger.verify()).differences, [])
    })
  }

  t.test('a full disk refuses new calls, tears no line, and keeps the ends of running calls', async t => {
    let room = Number.POSITIVE_INFINITY
    const write = ((fd: number, text: string) => {
      const bytes = Buffer.from(text)
      const fits = Math.min(bytes.length, room)
      if (fits === 0) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' })
      room -= fits
      return writeSync(fd, bytes.subarray(0, fits))
    }) as typeof Write
    const source = feed(chunkFrames([chunk('one ')]), chunkFrames([finish()]))
    const up = scripted('up', source.send, says('hello', tokens(10, 3)))
    const { gateway, caller, records, store } = await kept(t, { providers: [up], ledger: { write } })
    const running = await gateway.complete(askStream, caller({ id: 'req_running' }))

    room = 300
    const results = await Promise.allSettled(Array.from({ length: 5 }, () => gateway.complete(ask, caller())))
    for (const result of results)
      t.match(result, { status: 'rejected', reason: { wire: 'ledger_unavailable', statusCode: 503 } })
    room = 0
    await t.rejects(gateway.complete(ask, caller()), { message: /cannot be written down/ }, 'at once')
    t.match((await gateway.readiness()).checks['ledger'], { ok: false, reason: /full|part/ })
    source.end()
    await textOf(running)
    t.equal(gateway.running, 0)

    room = Number.POSITIVE_INFINITY
    while (!(await gateway.readiness()).ok) await new Promise(resolve => setTimeout(resolve, 20))
    await gateway.complete(ask, caller({ id: 'req_after' }))
    const rows = await records()
    t.match(
      rows.find(({ id }) => id === 'req_running'),
      { status: 'settled' }
    )
    t.match(
      rows.find(({ id }) => id === 'req_after'),
      { status: 'settled' }
    )
    t.ok(rows.every(({ status, attempts }) => status === 'settled' || (status === 'failed' && attempts.length === 0)))
    t.equal((await store.ledger.records({ status: 'open' }, { limit: 10 })).rows.length, 0)
    t.strictSame((await store.ledger.verify()).differences, [])
  })

  t.test('usage that contradicts itself is counted and said', async t => {
    const lines: string[] = []
    const odd = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2, prompt_tokens_details: { cached_tokens: 5 } }
    const { gateway, caller } = await kept(t, {
      providers: [scripted('up', says('hello', odd))],
      log: line => void lines.push(line),
      before: app => app.gateway.accountWith(priced)
    })
    for (let index = 0; index < 3; index++) await gateway.complete(ask, caller())
    t.equal(gateway.ledger!.mismatches, 3)
    t.equal(lines.filter(line => line.includes('contradicts itself')).length, 1)
  })

  t.test('a second start on the same data finds everything settled, and its totals go on', async t => {
    const first = await kept(t, {
      providers: [scripted('up', says('hello', tokens(10, 3)))],
      before: app => app.gateway.accountWith(priced)
    })
    await first.gateway.complete(ask, first.caller())
    await first.app.close()
    t.strictSame(readdirSync(join(first.directory, 'journal')), [])
    const second = await kept(t, { directory: first.directory })
    t.match(second.gateway.ledger!.totals(), { requests: 1, tokensIn: 10, tokensOut: 3, cost: 21 })
    t.match(await second.records(), [{ status: 'settled', cost: 21 }])
  })
}
