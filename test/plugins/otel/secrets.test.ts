import t from 'tap'
import type { Receiver } from '../../otlp/receiver.ts'
import { chunks, completion, failure, json, reset, sse } from '../../upstream.ts'
import { type Stage, secrets, stage } from './stage.ts'

// Nothing secret is in any export: not in spans, points, resources, names, or whatever else is on the wire.

const said = {
  system: 'SYSTEM-PROMPT-MARK-1f7c',
  prompt: 'USER-PROMPT-MARK-8a2e',
  answer: 'ANSWER-MARK-c05d',
  tool: 'TOOL-ARGUMENT-MARK-77b1',
  header: 'HEADER-VALUE-MARK-3d9a',
  query: 'QUERY-VALUE-MARK-e6f0',
  wrongKey: 'sk-wrong-key-0c4b7a2f19d8',
  quoted: 'sk-quoted-by-upstream-5e6d7c8b9a'
}
/** The beginning of an image, as bytes would stand in a data URL. */
const image = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJIMAGEMARK'

/** Calls of every kind that carry marks wherever a client or an upstream can put one. */
async function drive({ ask, first, second, receiver }: Stage): Promise<void> {
  const messages = [
    { role: 'system', content: said.system },
    {
      role: 'user',
      content: [
        { type: 'text', text: said.prompt },
        { type: 'image_url', image_url: { url: `data:image/png;base64,${image}` } }
      ]
    },
    {
      role: 'assistant',
      content: null,
      tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'f', arguments: `{"a":"${said.tool}"}` } }]
    },
    { role: 'tool', tool_call_id: 'call_1', content: said.tool },
    {
      role: 'user',
      content: `My key is ${secrets.clientKey}, or was it ${said.quoted}? See ![](data:image/png;base64,${image}=)`
    }
  ]
  const headers = {
    authorization: `Bearer ${secrets.clientKey}`,
    cookie: `session=${said.header}`,
    'x-custom': said.header,
    'user-agent': 'kit/1'
  }
  const path = `/v1/chat/completions?api_key=${said.query}`
  const finish = async (body: object, more: object = {}) =>
    void (await (await ask({ messages, ...body }, { headers, path, ...more })).text())

  first.script(json(completion({ content: said.answer })))
  await finish({ model: 'plain', user: said.header, metadata: { note: said.header } })
  // Keys and images come back in pieces.
  first.script(sse(chunks([said.answer, ' ', ...`Use ${said.quoted} and data:image/png;base64,${image}=`])))
  await finish({ model: 'plain', stream: true })
  const message = `Incorrect API key provided: ${said.quoted}, ${secrets.firstKey}; you said ${said.prompt}`
  const refuse = async (status: number, model: string) => {
    const script = failure(status, { message, code: message, type: message, param: message })
    first.script(script)
    second.script(script)
    await finish({ model })
  }
  await refuse(400, 'plain')
  await refuse(500, 'plain')
  first.script(sse([{ error: { message, code: message } }]))
  await finish({ model: 'plain', stream: true })
  first.script(reset(sse(chunks(said.answer)), 1_000))
  await finish({ model: 'plain', stream: true })
  // After these the keys rest.
  await refuse(401, 'plain')
  await refuse(429, 'other')
  const attempts = [first.requests.length, second.requests.length]
  if (attempts.join() !== '7,1') throw new Error(`Not every fault came about: ${attempts}`)
  await finish({ model: said.prompt })
  await finish({ model: 'plain' }, { headers: { ...headers, authorization: `Bearer ${said.wrongKey}` } })
  await finish({ model: 'plain', temperature: said.prompt })
  await finish({ model: 'plain' }, { path: `/v1/chat/${said.query}` })
  const last = await ask({ model: 'nobody' })
  await last.text()
  await receiver.trace(last.traceId, 1)
  const arrived = receiver.exports.filter(({ signal }) => signal === 'metrics').length
  await receiver.arrived(all => all.filter(({ signal }) => signal === 'metrics').length > arrived + 1)
}

/** Which of the texts are in the bytes of the exports, or in the headers that came with them. */
function found({ exports }: Receiver, texts: Readonly<Record<string, string>>): string[] {
  return Object.entries(texts).flatMap(([name, text]) => {
    const holds = exports.some(({ body, headers }) => body.includes(text) || JSON.stringify(headers).includes(text))
    return holds ? [name] : []
  })
}

for (const protocol of ['grpc', 'http/protobuf'] as const) {
  t.test(`over ${protocol} nothing that was said and no key is exported`, async t => {
    const world = await stage(t, { protocol, env: { SOME_SECRET: said.header } })
    await drive(world)
    t.same(found(world.receiver, { ...secrets, ...said, image }), [])
    t.same(found(world.receiver, { canary: 'first-model' }), ['canary'], 'what is there is found')
  })
}

t.test('with captureContent what was said is exported, but no key and no image', async t => {
  const world = await stage(t, { otel: { captureContent: true } })
  await drive(world)
  const { system, prompt, answer, tool, ...rest } = said
  t.same(found(world.receiver, { ...secrets, ...rest, image }), [])
  t.same(found(world.receiver, { system, prompt, answer, tool }), ['system', 'prompt', 'answer', 'tool'])
})

t.test('what is captured is cut', async t => {
  const world = await stage(t, { otel: { captureContent: true } })
  const { first, ask, spans } = world
  const long = 'word '.repeat(100_000)
  first.script(json(completion({ content: `${long}END-OF-ANSWER` })))
  const asked = await ask({ model: 'plain', messages: [{ role: 'user', content: `${long}END-OF-PROMPT` }] })
  t.equal(asked.status, 200)
  await asked.text()
  const found = await spans(asked, 3)
  const captured = found.flatMap(({ attributes }) =>
    ['gen_ai.input.messages', 'gen_ai.output.messages'].flatMap(name => attributes[name] ?? [])
  )
  t.ok(captured.length >= 2)
  for (const text of captured) {
    t.type(text, 'string')
    t.ok(String(text).length < 100_000, `${String(text).length} characters`)
    t.ok(Array.isArray(JSON.parse(String(text))), 'it is JSON all the same')
    t.notMatch(text, /END-OF/)
  }
})
