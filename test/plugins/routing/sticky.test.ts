import t, { type Test } from 'tap'
import pricing from '../../../plugins/pricing/index.ts'
import type { ModelOptions, RoutingOptions } from '../../../plugins/routing/index.ts'
import type { ChatRequest } from '../../../schemas/chat.ts'
import { UpstreamError } from '../../../schemas/errors.ts'
import { seeded } from '../../upstream.ts'
import { ask, fails, says, scripted } from '../kernel.ts'
import { at, keyed, keysOf, modelsOf, secondTurn, shares, stage, status } from './kit.ts'

const letters = ['a', 'b', 'c', 'd']

/** A gateway with an alias over the models a, b, … of one provider. */
async function process(
  t: Test,
  rest: Partial<ModelOptions> & { weights?: number[]; seed?: number; sticky?: boolean } = {}
) {
  const { weights = [1, 1, 1], seed = 1, sticky, ...model } = rest
  const up = scripted('up')
  const targets = weights.map((weight, index) => ({ provider: 'up', model: letters[index]!, weight }))
  const routing: RoutingOptions['routing'] = sticky === undefined ? {} : { sticky }
  const found = await stage(t, {
    providers: [up],
    models: { targets, retries: 0, ...model },
    random: seeded(seed),
    routing,
    before: app => app.register(pricing, { table: false })
  })
  return {
    ...found,
    /** Where a request goes. */
    async goes(request: ChatRequest, tenant?: string): Promise<string> {
      const { facts } = await found.run(request, tenant === undefined ? {} : { tenant })
      return facts.target?.model ?? ''
    }
  }
}

const hundred = Array.from({ length: 100 }, (_, index) => `Question ${index}`)

t.test('a conversation', async t => {
  t.test('is drawn by weight at its first turn', async t => {
    const { goes } = await process(t, { weights: [1, 1, 0] })
    const found = new Set<string>()
    for (let call = 0; call < 50; call++) found.add(await goes(ask))
    t.strictSame([...found].sort(), ['a', 'b'])
  })

  t.test('goes where every process sends it from its second turn on', async t => {
    const one = await process(t, { seed: 1 })
    const two = await process(t, { seed: 2 })
    const places = new Set<string>()
    for (const words of hundred) {
      const place = await one.goes(secondTurn(words))
      places.add(place)
      t.equal(await two.goes(secondTurn(words)), place)
      const longer = secondTurn(words)
      longer.messages.push({ role: 'assistant', content: 'I did.' }, { role: 'user', content: 'More.' })
      t.equal(await two.goes(longer), place, 'and at its third')
    }
    t.strictSame([...places].sort(), ['a', 'b', 'c'])
  })

  for (const strategy of ['weighted', 'least-latency', 'least-busy'] as const) {
    t.test(`stays where it is with ${strategy}`, async t => {
      const one = await process(t, { seed: 1, strategy })
      const two = await process(t, { seed: 2, strategy })
      one.state('up/a').answered(one.state('up/a').lanes[0]!, 10, one.clock.time)
      for (const words of hundred.slice(0, 20)) {
        t.equal(await two.goes(secondTurn(words)), await one.goes(secondTurn(words)))
      }
    })
  }

  t.test('stays where it is among targets of the same price with least-cost', async t => {
    const strategy = 'least-cost'
    const one = await process(t, { seed: 1, strategy })
    const two = await process(t, { seed: 2, strategy })
    const places = new Set<string>()
    for (const words of hundred) {
      const place = await one.goes(secondTurn(words))
      places.add(place)
      t.equal(await two.goes(secondTurn(words)), place)
    }
    t.equal(places.size, 3)
  })

  t.test('goes by priority all the same', async t => {
    const { goes } = await process(t, { strategy: 'priority' })
    for (const words of hundred.slice(0, 20)) t.equal(await goes(secondTurn(words)), 'a')
  })

  t.test('is drawn at every turn where sticky is false', async t => {
    const { goes } = await process(t, { sticky: false })
    const found = new Set<string>()
    for (let call = 0; call < 50; call++) found.add(await goes(secondTurn('Hello')))
    t.equal(found.size, 3)
  })

  t.test('stays where it is through a loop of tools', async t => {
    const { goes } = await process(t)
    for (const words of hundred.slice(0, 20)) {
      const request = secondTurn(words)
      request.messages[1] = { role: 'assistant', tool_calls: [{ id: 'c', function: { name: 'f', arguments: '{}' } }] }
      request.messages[2] = { role: 'tool', tool_call_id: 'c', content: '1' }
      t.equal(await goes(request), await goes(secondTurn(words)))
    }
  })

  t.test('that begins with a greeting is at its first turn with the first question', async t => {
    const { goes } = await process(t)
    const greeted = (...messages: ChatRequest['messages']): ChatRequest => ({
      model: 'test',
      messages: [{ role: 'assistant', content: 'Hello, how may I help?' }, { role: 'user', content: 'Hi' }, ...messages]
    })
    const first = new Set<string>()
    const second = new Set<string>()
    for (let call = 0; call < 50; call++) {
      first.add(await goes(greeted()))
      second.add(await goes(greeted({ role: 'assistant', content: 'So?' }, { role: 'user', content: 'Well.' })))
    }
    t.equal(first.size, 3)
    t.equal(second.size, 1)
  })

  t.test('is told from another one by its tenant, its model and both ends of long texts', async t => {
    const { goes } = await process(t, { weights: [1, 1, 1, 1] })
    const text = 'x'.repeat(5_000)
    const spread = async (each: (index: number) => Promise<string>) => {
      const found = new Set<string>()
      for (let index = 0; index < 40; index++) found.add(await each(index))
      return found.size
    }
    t.equal(await spread(index => goes(secondTurn('Hello'), `tenant-${index}`)), 4)
    t.equal(await spread(index => goes(secondTurn(`${index}${text}`))), 4)
    t.equal(await spread(index => goes(secondTurn(`${text}${index}`))), 4)
    t.equal(await spread(() => goes(secondTurn(text))), 1)
  })

  t.test('of parts is told by its first text', async t => {
    const { goes } = await process(t)
    const parts = (text: string): ChatRequest => {
      const request = secondTurn('')
      request.messages[0] = {
        role: 'user',
        content: [
          { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } },
          { type: 'text', text }
        ]
      }
      return request
    }
    const found = new Set<string>()
    for (const words of hundred) found.add(await goes(parts(words)))
    t.equal(found.size, 3)
    const same = new Set<string>()
    for (let call = 0; call < 20; call++) same.add(await goes(parts('Hello')))
    t.equal(same.size, 1)
  })

  t.test('with a prompt_cache_key goes by that, at its first turn too', async t => {
    const one = await process(t, { seed: 1 })
    const two = await process(t, { seed: 2 })
    const places = new Set<string>()
    for (const key of hundred) {
      const place = await one.goes({ ...ask, prompt_cache_key: key })
      places.add(place)
      t.equal(await two.goes(secondTurn('whatever', { prompt_cache_key: key })), place)
    }
    t.equal(places.size, 3)
  })

  t.test('with an empty prompt_cache_key has none', async t => {
    const { goes } = await process(t)
    const found = new Set<string>()
    for (let call = 0; call < 50; call++) found.add(await goes({ ...ask, prompt_cache_key: '' }))
    t.equal(found.size, 3)
  })
})

t.test('conversations', async t => {
  t.test('are spread by weight within 2 % over 10,000 of them', async t => {
    const up = scripted('up')
    const targets = [5, 3, 2].map((weight, index) => ({ provider: 'up', model: letters[index]!, weight }))
    const { run } = await stage(t, { providers: [up], models: { targets } })
    for (let index = 0; index < 10_000; index++) await run(secondTurn(`Question ${index}, please.`))
    const found = shares(modelsOf(up))
    for (const [model, share] of Object.entries({ a: 0.5, b: 0.3, c: 0.2 })) {
      t.ok(Math.abs((found[model] ?? 0) - share) < 0.02, `${model}: ${found[model]} of ${share}`)
    }
  })

  t.test('stay where they are when another target is dead, and those of the dead one are spread', async t => {
    const providers = letters.map(name => scripted(name))
    const dead = letters.map(name =>
      name === 'b' ? scripted('b', fails(new UpstreamError('broken'))) : scripted(name)
    )
    const models = { strategy: 'weighted' as const, targets: at(...letters), retries: 0 }
    const well = await stage(t, { providers, models })
    const ill = await stage(t, { providers: dead, models })
    const moved: string[] = []
    for (let index = 0; index < 300; index++) {
      const request = secondTurn(`Question ${index}`)
      const before = (await well.run(request)).facts.target?.provider.name
      const after = (await ill.run(request)).facts.target?.provider.name ?? ''
      if (before === 'b') moved.push(after)
      else t.equal(after, before)
    }
    t.ok(moved.length > 40, `${moved.length} were there`)
    t.strictSame([...new Set(moved)].sort(), ['a', 'c', 'd'])
  })

  t.test('keep their key, the same in every process', async t => {
    const one = keyed('up', 3)
    const two = keyed('up', 3)
    const models = { targets: at('up') }
    const first = await stage(t, { providers: [one], models })
    const second = await stage(t, { providers: [two], models })
    for (const words of hundred) {
      await first.run(secondTurn(words))
      await second.run(ask)
      await second.run(secondTurn(words))
    }
    t.strictSame(
      keysOf(two).filter((_, index) => index % 2 === 1),
      keysOf(one)
    )
    t.equal(new Set(keysOf(one)).size, 3)
  })

  t.test('keep their key when another one rests, and come back when their own is well', async t => {
    const up = keyed('up', 3, async attempt => {
      if (attempt.key === 1 && refused) throw status(401)
      return says('x')(attempt)
    })
    let refused = false
    const { run, clock } = await stage(t, { providers: [up], models: { targets: at('up') } })
    const usual = new Map<string, number>()
    const key = async (words: string) => {
      await run(secondTurn(words))
      return keysOf(up).at(-1)!
    }
    for (const words of hundred) usual.set(words, await key(words))
    refused = true
    for (const words of hundred) {
      const now = await key(words)
      if (usual.get(words) === 1) t.not(now, 1)
      else t.equal(now, usual.get(words))
    }
    refused = false
    clock.advance(60_000)
    for (const words of hundred) t.equal(await key(words), usual.get(words))
  })
})
