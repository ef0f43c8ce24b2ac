import assert from 'node:assert/strict'
import type { ChatRequest } from '../schemas/chat.ts'
import { isGatewayError } from '../schemas/errors.ts'
import type { Provider } from '../schemas/provider.ts'
import { inputOf, outputOf, usageOf } from '../schemas/usage.ts'
import { type Call, type Outcome, outcomeOf, outcomeOfChunks, streamed, whole } from './attempt.ts'
import { type Demand, ofVendors, speech } from './demands.ts'
import { type Cut, pieces, type Reply } from './upstream/replies.ts'
import type { Said, Speech, Vendor } from './vendor.ts'
import { piecesOf } from './wire.ts'

const thinking = ['The user', ' wants\n\n', 'a "greeting": 你好.']
const calls = [
  {
    id: 'call_one',
    name: 'get_weather',
    arguments: ['', '{"city": "Z', 'ürich 🙂", "da', 'ys": [1, {"x": null}]', '}']
  },
  { id: 'call_two', name: 'now', arguments: [] },
  { id: 'call_three', name: 'get_weather', arguments: ['{"city":"東京"}'] }
]
const tools: ChatRequest['tools'] = [
  { type: 'function', function: { name: 'get_weather', parameters: { type: 'object', properties: {} } } },
  { type: 'function', function: { name: 'now' } }
]

/** Everything that a vendor may be able to say, with the parts that its script then has to know. */
const speeches: ReadonlyArray<readonly [title: string, speech: Speech, needs: readonly Said[]]> = [
  ['a text', speech, []],
  ['a text that became too long', { ...speech, finish: 'length' }, []],
  ['a text that a filter ended', { ...speech, filtered: true }, ['filtered']],
  ['one call of a tool', { ...speech, text: [], calls: calls.slice(0, 1) }, ['calls']],
  ['a call without arguments', { ...speech, text: [], calls: calls.slice(1, 2) }, ['calls']],
  ['parallel calls after a text', { ...speech, calls }, ['calls']],
  ['thoughts and a text', { ...speech, thinking }, ['thinking']],
  ['thoughts and calls', { ...speech, text: [], thinking, calls }, ['thinking', 'calls']],
  ['tokens read from a cache', { ...speech, inputTokens: 900, cacheRead: 700 }, ['cacheRead']],
  ['tokens written to a cache', { ...speech, inputTokens: 900, cacheWrite: 800 }, ['cacheWrite']],
  [
    'tokens read from and written to a cache',
    { ...speech, inputTokens: 900, cacheRead: 500, cacheWrite: 300 },
    ['cacheRead', 'cacheWrite']
  ],
  ['tokens of thoughts', { ...speech, outputTokens: 90, reasoningTokens: 70 }, ['reasoningTokens']]
]

/** What a model said arrives, whole and streamed, and however the bytes of a stream are split. */
export const saidDemands: readonly Demand[] = speeches.flatMap(([title, said, needs]) => {
  const can = (vendor: Vendor) => needs.every(part => vendor.says?.includes(part))
  return [
    ofVendors(
      `${title}: a whole answer says it`,
      async (provider, vendor) => {
        vendor.upstream.script(vendor.whole(said))
        const { body } = await whole(provider, { request: { tools } })
        assertSaid(outcomeOf(body), said)
      },
      can
    ),
    ofVendors(
      `${title}: a stream says it, however its bytes are split`,
      async (provider, vendor) => {
        const outcome = await heard(provider, vendor, vendor.stream(said))
        assertSaid(outcome, said)
        const cuts = said === speech || said.calls || said.thinking ? allCuts : someCuts
        for (const [how, reply] of await disguises(vendor.stream(said), cuts))
          assert.deepEqual(await heard(provider, vendor, reply), outcome, how)
      },
      can
    )
  ]
})

/** The same for a stream that fails, and for every place where a short one can be cut in two. */
export const splitDemands: readonly Demand[] = [
  ofVendors('a stream says a text in its pieces', async (provider, vendor) => {
    vendor.upstream.script(vendor.stream(speech))
    const { chunks } = await streamed(provider)
    const said = chunks.flatMap(chunk => chunk.choices[0]?.delta.content || [])
    assert.deepEqual(said, speech.text)
  }),

  ofVendors('a short stream arrives whole wherever it is cut in two', async (provider, vendor) => {
    const reply = vendor.stream({ ...speech, text: ['é🙂'] })
    const outcome = await heard(provider, vendor, reply)
    const length = Buffer.concat(await piecesOf(reply)).length
    for (let at = 1; at < length; at++)
      assert.deepEqual(await heard(provider, vendor, await recut(reply, [at])), outcome, `cut at ${at}`)
  }),

  ofVendors(
    'a stream that says that it failed fails however its bytes are split',
    async (provider, vendor) => {
      for (const [how, reply] of await disguises(vendor.failing!(speech, 'It broke.'), allCuts)) {
        vendor.upstream.script(reply)
        const { error, chunks } = await streamed(provider)
        assert.ok(isGatewayError(error) && error.statusCode >= 500, how)
        assert.equal(outcomeOfChunks(chunks).text, speech.text.join(''), how)
      }
    },
    vendor => vendor.failing
  )
]

/** What a stream says. Ids and times may be of our own making, and so differ from call to call. */
async function heard(provider: Provider, vendor: Vendor, reply: Reply): Promise<Outcome> {
  vendor.upstream.script(reply)
  const { chunks, error } = await streamed(provider, { request: { tools } })
  assert.equal(error, null)
  const outcome = outcomeOfChunks(chunks)
  assertIds(outcome.calls)
  return { ...outcome, calls: outcome.calls.map(call => ({ ...call, id: '' })) }
}

function assertSaid(outcome: Outcome, said: Speech): void {
  const { calls = [], thinking = [], filtered = false } = said
  assert.equal(outcome.text, said.text.join(''))
  assert.equal(outcome.thinking, thinking.join(''))
  assert.equal(outcome.finish, filtered ? 'content_filter' : calls.length > 0 ? 'tool_calls' : said.finish)
  assert.deepEqual(
    outcome.calls.map(call => ({ type: call.type, name: call.name, arguments: JSON.parse(call.arguments || '{}') })),
    calls.map(call => ({ type: 'function', name: call.name, arguments: JSON.parse(call.arguments.join('') || '{}') }))
  )
  const usage = usageOf(outcome.usage)
  assert.equal(usage.mismatch, false, 'the parts of its usage are not more than the whole')
  assert.deepEqual(
    {
      inputTokens: inputOf(usage),
      outputTokens: outputOf(usage),
      cacheRead: usage.cacheRead,
      cacheWrite: usage.cacheWrite5m + usage.cacheWrite1h,
      reasoningTokens: usage.reasoning
    },
    {
      inputTokens: said.inputTokens,
      outputTokens: said.outputTokens,
      cacheRead: said.cacheRead ?? 0,
      cacheWrite: said.cacheWrite ?? 0,
      reasoningTokens: said.reasoningTokens ?? 0
    }
  )
  assert.equal(outcome.usage?.total_tokens, said.inputTokens + said.outputTokens)
}

function assertIds(calls: readonly Call[]): void {
  for (const { id } of calls) assert.ok(id !== '', 'every call has an id')
  assert.equal(new Set(calls.map(({ id }) => id)).size, calls.length, 'no two calls have the same id')
}

const someCuts: readonly Cut[] = ['none', { seed: 1, max: 40 }]
const allCuts: readonly Cut[] = [...someCuts, 'byte', { seed: 2, max: 40 }, { seed: 3, max: 40 }]

/** The same stream in other bytes: cut everywhere, with other line ends, with comments between its events. */
async function disguises(reply: Reply, cuts: readonly Cut[]): Promise<Array<readonly [how: string, reply: Reply]>> {
  const all: Array<readonly [string, Reply]> = []
  for (const cut of cuts) all.push([`cut: ${JSON.stringify(cut)}`, await recut(reply, cut)])
  if (!String(reply.headers['content-type']).startsWith('text/event-stream')) return all
  const lines = (await textOf(reply)).replaceAll('\r\n', '\n')
  for (const [how, changed] of [
    ['CRLF', lines.replaceAll('\n', '\r\n')],
    ['comments', lines.replaceAll('\n\n', '\n\n: keep-alive\n\n').replace(/^/, ': hello\n\n')],
    ['no white space', lines.replaceAll(/^data: /gm, 'data:')]
  ] as const) {
    const whole = { ...reply, body: () => [Buffer.from(changed)] }
    all.push([how, whole], [`${how}, cut`, await recut(whole, { seed: 9, max: 12 })])
  }
  return all
}

async function recut(reply: Reply, cut: Cut): Promise<Reply> {
  const parts = pieces(Buffer.concat(await piecesOf(reply)), cut)
  return { ...reply, body: () => parts }
}

async function textOf(reply: Reply): Promise<string> {
  return Buffer.concat(await piecesOf(reply)).toString()
}
