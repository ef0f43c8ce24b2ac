import { createHmac, generateKeyPairSync, hash } from 'node:crypto'
import Fastify from 'fastify'
import { createLocalJWKSet, jwtVerify } from 'jose'
import type OpenAI from 'openai'
import t, { type Test } from 'tap'
import modelGateway from '../../app.ts'
import { verifyAnswer, verifyStream } from '../../examples/verify/verify.ts'
import idempotency from '../../plugins/idempotency/index.ts'
import signing, { type SigningOptions } from '../../plugins/signing/index.ts'
import { macOf } from '../../plugins/signing/mac.ts'
import { patternOf } from '../../plugins/signing/pattern.ts'
import { eventReader } from '../../providers/sse/index.ts'
import { canonical } from '../../schemas/canonical.ts'
import type { ChatCompletion, ChatCompletionChunk, ChatRequest } from '../../schemas/chat.ts'
import { ConfigError, readConfig } from '../../schemas/config.ts'
import { UpstreamError } from '../../schemas/errors.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Completed } from '../../schemas/gateway.ts'
import type { Send } from '../../schemas/provider.ts'
import { build, hello, stack } from '../helper.ts'
import { failure, json, sse, wantsUsage, chunks as wireChunks, completion as wireCompletion } from '../upstream.ts'
import {
  ask,
  askStream,
  chunk,
  completion,
  fails,
  feed,
  finish,
  type HostOptions,
  host,
  nothingLeft,
  reader,
  rejection,
  role,
  says,
  scripted,
  streams,
  textOf,
  tokens,
  usageChunk
} from './kernel.ts'

const secret = 'a secret that is longer than 32 characters'
const done = 'data: [DONE]\n\n'

/** The plugin alone in the kernel. */
async function signed(t: Test, options: HostOptions & Partial<SigningOptions> = {}) {
  const app = await host(t, options)
  await app.register(idempotency)
  await app.register(signing, { secret, ...options })
  await app.ready()
  const { gateway } = app
  const call = (request: ChatRequest = ask, idempotencyKey?: string) =>
    gateway.complete(request, gateway.caller({ tenant: 'acme', idempotencyKey }))
  return { app, gateway, call }
}

function bytes({ raw }: { readonly raw: Uint8Array | null }): string {
  if (raw === null) throw new Error('It is not in bytes.')
  return Buffer.from(raw).toString()
}

/** What a transport writes of an answer. */
async function written(answer: Completed): Promise<string> {
  if (!answer.stream) return bytes(answer)
  let text = ''
  for await (const frames of answer.frames) text += bytes(frames)
  return text + done
}

async function chunksOf(answer: Completed): Promise<ChatCompletionChunk[]> {
  const all: ChatCompletionChunk[] = []
  if (answer.stream) for await (const frames of answer.frames) all.push(...frames)
  return all
}

/** A whole answer in the bytes of a provider. */
function answers(raw: string): Send {
  return async () => ({ stream: false, raw: Buffer.from(raw), body: JSON.parse(raw) })
}

/** A stream in the bytes of a provider, a frame for each text. */
function sends(...texts: string[]): Send {
  const read = eventReader(1_000_000)
  return streams(...texts.flatMap(text => read.read(Buffer.from(text)).frames ?? []))
}

function header({ facts }: Completed, name: string): string | undefined {
  const at = facts.headers.indexOf(name)
  return at === -1 ? undefined : facts.headers[at + 1]
}

// whole answers

t.test('an answer is signed: HMAC-SHA256 over its canonical JSON', async t => {
  const { call, app } = await signed(t)
  const answer = await call()
  if (answer.stream) return t.fail('a stream')
  const { signature, ...rest } = JSON.parse(bytes(answer))
  t.strictSame(rest, JSON.parse(JSON.stringify(completion('up says'))))
  t.equal(signature, createHmac('sha256', secret).update(canonical(rest)).digest('hex'))
  t.match(signature, /^[0-9a-f]{64}$/)
  t.equal(answer.body['signature'], signature, 'who looks in this process sees it too')
  t.equal(await textOf(answer), 'up says')
  nothingLeft(t, app)
})

t.test('the bytes of the provider stay, with the signature before their last brace', async t => {
  for (const [raw, expected] of [
    [
      '{ "choices": [] , "big":12345678901234567890, "one":1.0 }\n',
      '{ "choices": [] , "big":12345678901234567890, "one":1.0 ,'
    ],
    ['{"choices":[],"nested":{}}', '{"choices":[],"nested":{},'],
    ['{}', '{'],
    ['{ \n} \r\n', '{ \n']
  ] as const) {
    const { call } = await signed(t, { providers: [scripted('up', answers(raw))] })
    const text = await written(await call())
    t.match(text, new RegExp(`^.{${expected.length}}"signature":"[0-9a-f]{64}"}$`, 's'))
    t.equal(text.slice(0, expected.length), expected)
    t.equal(verifyAnswer(text, secret), true)
  }
})

t.test('a signature that the provider sent itself is replaced, however it is written', async t => {
  for (const field of ['"signature":"theirs"', '"sig\\u006eature":"theirs"', '"signature":1,"signature":"theirs"']) {
    const { call } = await signed(t, { providers: [scripted('up', answers(`{"choices":[],${field}}`))] })
    const text = await written(await call())
    t.notMatch(text, 'theirs')
    t.equal(verifyAnswer(text, secret), true)
  }
})

t.test('a number that nobody can hold becomes null, as everywhere in JSON', async t => {
  const { call } = await signed(t, { providers: [scripted('up', answers('{"choices":[],"x":[1e400,-1e400,1]}'))] })
  const text = await written(await call())
  t.strictSame(JSON.parse(text).x, [null, null, 1])
  t.equal(verifyAnswer(text, secret), true)
})

t.test('an answer that is nested too deeply is a fault of the provider', async t => {
  const raw = `{"choices":[],"x":${'['.repeat(50_000)}${']'.repeat(50_000)}}`
  const { call, app } = await signed(t, { providers: [scripted('up', answers(raw))] })
  t.match(await rejection(call()), { statusCode: 502, message: /nested too deeply to be signed/ })
  nothingLeft(t, app)
})

t.test('so is one that holds a number that nobody can hold as well', async t => {
  const raw = `{"a":1e400,"choices":[],"x":${'['.repeat(50_000)}${']'.repeat(50_000)}}`
  const { call } = await signed(t, { providers: [scripted('up', answers(raw))] })
  t.match(await rejection(call()), { statusCode: 502, message: /nested too deeply to be signed/ })
})

t.test('what an answer reports of its usage is known all the same', async t => {
  const { call, gateway } = await signed(t, { providers: [scripted('up', says('x', tokens(3, 4)))] })
  const answer = await call()
  if (answer.stream) return t.fail('a stream')
  t.strictSame(answer.body.usage, tokens(3, 4))
  t.equal(gateway.running, 0)
})

t.test('an error carries no signature and no key id', async t => {
  const { call } = await signed(t, { providers: [scripted('up', fails(new UpstreamError('broken')))] })
  t.match(await rejection(call()), { statusCode: 502 })
})

// streams

t.test('each chunk covers itself, its number and the signature before it; the last one the whole', async t => {
  const { call, app } = await signed(t, { providers: [scripted('up', says('one two'))] })
  const all = await chunksOf(await call(askStream))
  const mac = (text: string) => createHmac('sha256', secret).update(text).digest('hex')
  let previous = ''
  for (const [index, { x_signature: signature, x_signature_final: final, ...rest }] of all.entries()) {
    t.equal(signature, mac(`${index + 1}\n${previous}\n${canonical(rest)}`))
    previous = String(signature)
    const isLast = index === all.length - 1
    t.equal(final, isLast ? mac(`final\n${all.length}\n${previous}`) : undefined)
    if (isLast) t.strictSame(rest, { id: 'c1', object: 'chat.completion.chunk', created: 1, model: 'm', choices: [] })
  }
  t.equal(all.length, 5, 'role, two words, finish and ours')
  nothingLeft(t, app)
})

t.test('the bytes of a stream verify, whatever its provider sends', async t => {
  const event = (value: object, line = '\n') => `data: ${JSON.stringify(value)}${line}${line}`
  const cases: Array<[string, Send]> = [
    ['chunks', says('one two')],
    ['events', sends(event(role()), event(chunk('a')) + event(chunk('b')), event(finish()) + done)],
    ['CRLF', sends(event(chunk('a'), '\r\n'), event(finish(), '\r\n'))],
    ['CR', sends(`${event(chunk('a'), '\r')} `, `${event(finish(), '\r')} `)],
    ['comments', sends(`: PROCESSING\n\n${event(chunk('a'))}: PROCESSING\n\n`, ': PROCESSING\n\n', event(finish()))],
    ['a comment of two lines', sends(`: one\n: two\n\n${event(chunk('a'))}`, event(finish()))],
    ['data over several lines', sends(`data: {"choices":\ndata: []}\n\n${event(finish())}`)],
    ['a named event', sends(`event: x\n${event(chunk('a'))}`, event(finish()))],
    ['events that are no chunks', sends(`${event({ type: 'ping' })}data: 7\n\ndata: {no json}\n\n${event(finish())}`)],
    ['signatures of its own', sends(event({ ...finish(), x_signature: 'a', x_signature_final: 'b', x_receipt: 'c' }))],
    ['a number that nobody can hold', sends(`data: {"choices":[{"delta":{},"finish_reason":"stop"}],"x":1e400}\n\n`)]
  ]
  for (const [name, send] of cases) {
    const { call } = await signed(t, { providers: [scripted('up', send)] })
    const text = await written(await call(askStream))
    t.equal(verifyStream(text, secret), 'valid', name)
    t.notMatch(text, /PROCESSING|ping|no json|"x_receipt"/, 'what is not signed is left out')
  }
})

t.test('the JSON of a chunk stays as it came', async t => {
  const odd =
    '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}], "big":12345678901234567890,"one":1.0}'
  for (const line of ['\n', '\r\n']) {
    const { call } = await signed(t, { providers: [scripted('up', sends(`data: ${odd}${line}${line}`))] })
    const text = await written(await call(askStream))
    t.equal(text.startsWith(`data: ${odd.slice(0, -1)},"x_signature":"`), true)
    t.equal(verifyStream(text, secret), 'valid')
  }
})

t.test('chunks that differ in a text alone are signed as what they are, however they are written', async t => {
  const head = '"id":"c1","object":"chat.completion.chunk","created":1,"model":"m","one":1.0'
  const texts = [
    ...[
      'a',
      'b',
      '',
      'Grüße',
      '東京',
      '👋🏽',
      '\\n\\t\\"\\\\',
      '\\/',
      '\\u0041',
      '\\u00e9',
      '\\ud83d',
      '\\ud83d\\udc4b',
      '\u2028'
    ],
    ...['","role":"x', ' ', 'y'.repeat(5_000), '\\u0022content\\u0022:\\u0022', 'end']
  ]
  const kinds: Array<(text: string) => string> = [
    text => `{"choices":[{"index":0,"delta":{"content":"${text}"},"finish_reason":null}],${head}}`,
    text => `{${head},"choices":[{"index":0,"delta":{"content": "${text}" }}],"obfuscation":"${text}${text}"}`,
    text => `{"obfuscation":"${text}x","choices":[{"delta":{"reasoning":"${text}","content":"${text}!"}}],${head}}`,
    text => `{"choices":[{"delta":{"content":"${text}","content":"the last counts"}}],${head}}`,
    text => `{"content":"${text}","choices":[{"delta":{"content":"${text}"}}],"__proto__":{"text":"${text}"},${head}}`,
    text =>
      `{"a\\"content":"${text}","choices":[{"delta":{"text":"${text}","name":"${text}","refusal":"","thinking":""}}]}`,
    text => `{"choices":[{"delta":{"content":"${text}"}}],"x_signature":"${text}",${head}}`,
    text => `{"choices":[{"delta":{"content":"${text}"}}],"x":${texts.indexOf(text)},${head}}`
  ]
  for (const [index, kind] of kinds.entries()) {
    const sent = [...texts, ...texts.toReversed()].map(kind)
    const events = [...sent.map(json => `data: ${json}\n\n`), `data: ${JSON.stringify(finish())}\n\n`]
    const { call } = await signed(t, { providers: [scripted('up', sends(...events))] })
    const text = await written(await call(askStream))
    t.equal(verifyStream(text, secret), 'valid', `kind ${index}`)
    const got = text.match(/(?<=^data: )\{[^\n]*/gm) ?? []
    t.strictSame(got.slice(0, sent.length).map(said), sent.map(said))

    const again = await signed(t, { providers: [scripted('up', sends(...events))] })
    const chunks = await chunksOf(await again.call(askStream))
    t.strictSame(
      chunks.slice(0, sent.length).map(chunk => said(JSON.stringify(chunk))),
      sent.map(said),
      'as objects too'
    )
  }
})

t.test('an ordinary chunk is signed by what it has in common with another one', async t => {
  const event = (content: string, noise = 'x') => JSON.stringify({ ...chunk(content), obfuscation: noise })
  const pattern = patternOf(event('one'))
  for (const other of [event('two', ''), event('Grüße "\n\\'), event('', 'y')]) {
    t.equal(pattern?.canonicalOf(other), canonical(JSON.parse(other)))
  }
  for (const other of [
    event('👋🏽'),
    event('\ud83d'),
    event('\u0001'),
    event('z'.repeat(5_000)),
    `${event('one')} `,
    event('one').slice(0, -1),
    event('one').replace('"one"', '1'),
    event('one').replace('"one"', '"one'),
    event('one').replace('"m"', '"n"'),
    JSON.stringify({ ...chunk('one') })
  ]) {
    t.equal(pattern?.canonicalOf(other), null, other.slice(0, 200))
  }
  const without = [
    JSON.stringify(finish()),
    JSON.stringify({ choices: [], obfuscation: 'x' }),
    event('z'.repeat(5_000)),
    '{"choices":[{"delta":{"content":"a","content":"b"}}]}',
    '{"choices":[],"a":{"text":"1","name":"2"},"b":{"text":"3","name":"4"},"text":"5"}'
  ]
  for (const text of without) t.equal(patternOf(text), null, text.slice(0, 200))
})

/** What JSON says, without our own fields. */
function said(json: string): unknown {
  const { x_signature, x_signature_final, ...rest } = JSON.parse(json)
  return rest
}

t.test('the usage is signed where it was asked for, and known to the gateway where it was not', async t => {
  for (const wanted of [true, false]) {
    const seen: number[] = []
    const app = await host(t, { providers: [scripted('up', says('one two', tokens(3, 4)))] })
    await app.register(signing, { secret })
    app.gateway.intercept('observe', (inference, next) => {
      inference.onSettled((_, { usage }) => seen.push(usage.input, usage.output))
      return next(inference)
    })
    await app.ready()
    const request = { ...askStream, stream_options: { include_usage: wanted } }
    const text = await written(await app.gateway.complete(request, app.gateway.caller()))
    t.equal(verifyStream(text, secret), 'valid')
    t.equal(text.includes('"prompt_tokens":3'), wanted)
    t.strictSame(seen, [3, 4])
  }
})

t.test('what listens to a stream hears what the provider said, once', async t => {
  const heard: Frames[] = []
  const app = await host(t, { providers: [scripted('up', says('one two', tokens(3, 4)))] })
  await app.register(signing, { secret })
  app.gateway.intercept('observe', (inference, next) => {
    inference.onFrames(frames => heard.push(frames))
    return next(inference)
  })
  await app.ready()
  const all = await chunksOf(await app.gateway.complete(askStream, app.gateway.caller()))
  const chunks = heard.flatMap(frames => [...frames])
  t.strictSame(chunks.at(-1), usageChunk(tokens(3, 4)), 'its usage too')
  t.equal(chunks.filter(chunk => 'x_signature' in chunk).length, 0)
  t.equal(all.length, chunks.length, 'one less with the usage, one more with the signature of the whole')
})

t.test('the end comes with the last events where the provider says that nothing follows', async t => {
  const { call } = await signed(t, {
    providers: [scripted('up', sends(`data: ${JSON.stringify(finish())}\n\n${done}`))]
  })
  const answer = await call(askStream)
  const read = reader(answer)
  const first = await read.next()
  t.equal(first.value?.last, true)
  t.equal([...(first.value ?? [])].length, 2)
  t.equal(first.value?.finished, true)
  t.equal((await read.next()).done, true)
})

t.test('a fault after what was said to be the last is told after it', async t => {
  const last = {
    ...chunkFrames([chunk('a'), finish()]),
    last: true,
    [Symbol.iterator]: () => [chunk('a'), finish()].values()
  }
  const up = feed(last)
  const { call } = await signed(t, { providers: [scripted('up', up.send)] })
  const read = reader(await call(askStream))
  up.fail(new UpstreamError('broken'))
  const first = await read.next()
  t.equal(first.value?.last, false)
  t.notMatch(bytes(first.value!), 'x_signature_final')
  t.match(await rejection(read.next()), { statusCode: 502 })
})

t.test('a stream that breaks off has no signature of the whole: a verifier says truncated', async t => {
  const up = feed(chunkFrames([role()]), chunkFrames([chunk('one')]))
  const { call, app } = await signed(t, { providers: [scripted('up', up.send)] })
  const read = reader(await call(askStream))
  let text = bytes((await read.next()).value!) + bytes((await read.next()).value!)
  up.fail(new UpstreamError('broken'))
  t.match(await rejection(read.next()), { statusCode: 502 })
  text += `data: ${JSON.stringify({ error: { message: 'broken' } })}\n\n`
  t.equal(verifyStream(text, secret), 'truncated')
  nothingLeft(t, app)
})

t.test('a client that leaves ends the call at its provider', async t => {
  const up = feed(chunkFrames([role()]), chunkFrames([chunk('one')]))
  const { call, app } = await signed(t, { providers: [scripted('up', up.send)] })
  const read = reader(await call(askStream))
  await read.next()
  await read.return()
  t.equal((await read.next()).done, true)
  t.equal(up.closed, 1)
  nothingLeft(t, app)
})

t.test('a stream that says nothing is signed as nothing, under the id of the call', async t => {
  const bare = `data: ${JSON.stringify({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })}\n\n`
  const { call } = await signed(t, { providers: [scripted('up', sends(bare))] })
  const last = (await chunksOf(await call(askStream))).at(-1)
  t.match(last, { id: /^req_/, object: 'chat.completion.chunk', model: 'test', choices: [] })
  t.ok(Math.abs(Date.now() / 1_000 - last!.created) < 60)
})

t.test('frames answer for what they hold, and give up their signatures where chunks are taken out', async t => {
  const up = scripted('up', streams(chunkFrames([chunk('one'), finish(), usageChunk(tokens(1, 2))])))
  const { call } = await signed(t, { providers: [up] })
  const read = reader(await call({ ...askStream, stream_options: { include_usage: true } }))
  const frames = (await read.next()).value!
  const { dialect, finished, hasUsage, usage, hasToken, hasData, pieces, textBytes } = frames
  t.strictSame(
    { dialect, finished, hasUsage, usage, hasToken, hasData, pieces, textBytes },
    {
      dialect: 'openai',
      finished: true,
      hasUsage: true,
      usage: tokens(1, 2),
      hasToken: true,
      hasData: true,
      pieces: 1,
      textBytes: 3
    }
  )
  t.equal([...(frames.withoutUsage() ?? [])].length, 2)
  const last = (await read.next()).value!
  t.strictSame(
    [last.finished, last.hasUsage, last.usage, last.hasToken, last.hasData, last.pieces, last.textBytes, last.last],
    [false, false, null, false, true, 0, 0, true]
  )
  t.equal((await read.next()).done, true)
})

// kept answers

t.test('what is kept for a repeat is not signed, and the repeat is signed anew', async t => {
  for (const request of [ask, askStream, { ...askStream, stream_options: { include_usage: true } }]) {
    const up = scripted('up', says('one two', tokens(3, 4)))
    const { call } = await signed(t, { providers: [up] })
    const first = await written(await call(request, 'key'))
    const again = await call(request, 'key')
    t.equal(header(again, 'idempotency-replayed'), 'true')
    const second = await written(again)
    t.equal(up.attempts.length, 1)
    t.equal(first.match(/signature"/g)?.length, second.match(/signature"/g)?.length)
    if (request.stream) t.strictSame([verifyStream(first, secret), verifyStream(second, secret)], ['valid', 'valid'])
    else t.strictSame([verifyAnswer(first, secret), verifyAnswer(second, secret)], [true, true])
    t.equal(second.match(/x_signature_final/g)?.length ?? 0, request.stream ? 1 : 0)
  }
})

// secrets

t.test('the key id is derived from the secret, or is what the configuration says', async t => {
  const one = await signed(t)
  const other = await signed(t, { secret: `${secret}.` })
  const own = await signed(t, { keyId: '2026-11' })
  const answer = await one.call()
  t.equal(header(answer, 'x-gateway-key-id'), one.gateway.signing?.keyId)
  t.match(one.gateway.signing?.keyId, /^[0-9a-f]{16}$/)
  t.not(one.gateway.signing?.keyId, other.gateway.signing?.keyId)
  t.equal(header(await own.call(), 'x-gateway-key-id'), '2026-11')
  const stream = await own.call(askStream)
  t.equal(header(stream, 'x-gateway-key-id'), '2026-11')
  await written(stream)
})

t.test('this process can verify: with the secret and with those before it', async t => {
  const before = await signed(t, { secret: 'the secret of before, long enough as well' })
  const after = await signed(t, { previous: ['the secret of before, long enough as well'] })
  const bodyOf = async (answer: Promise<Completed>): Promise<ChatCompletion> => JSON.parse(await written(await answer))
  const old = await bodyOf(before.call())
  const fresh = await bodyOf(after.call())
  t.equal(after.gateway.signing?.verify(old), true)
  t.equal(after.gateway.signing?.verify(fresh), true)
  t.equal(before.gateway.signing?.verify(fresh), false)
  for (const other of [{}, { ...fresh, model: 'x' }, { ...fresh, signature: 1 }, { ...fresh, signature: 'short' }]) {
    t.equal(after.gateway.signing?.verify(other), false)
  }
  t.equal(after.gateway.signing?.jwks, null, 'there are no receipts')
})

t.test('what cannot have been signed does not verify, where it threw', async t => {
  const { gateway, call } = await signed(t, { providers: [scripted('up', answers('{"id":"c1","x":1e400}'))] })
  const fresh = JSON.parse(await written(await call()))
  t.equal(gateway.signing?.verify(fresh), true)
  t.equal(fresh.x, null)
  t.equal(gateway.signing?.verify({ ...fresh, x: Number.POSITIVE_INFINITY }), false, 'read from 1e400')
  t.equal(gateway.signing?.verify({ ...fresh, x: JSON.parse('['.repeat(50_000) + ']'.repeat(50_000)) }), false)
  const circle: Record<string, unknown> = { ...fresh }
  t.equal(gateway.signing?.verify(Object.assign(circle, { x: circle })), false)
  t.equal(gateway.signing?.verify({ ...fresh, x: 1n }), false)
  for (const text of ['null', '5', '"x"', '[]']) t.equal(gateway.signing?.verify(JSON.parse(text)), false, text)
})

t.test('a short secret is taken, and warned of without showing it', async t => {
  const lines: string[] = []
  await signed(t, { secret: 'hunter2', log: line => lines.push(line) })
  t.match(lines.join(), /signing\.secret is shorter than 32 characters/)
  t.notMatch(lines.join(), 'hunter2')
  const more: string[] = []
  await signed(t, { log: line => more.push(line) })
  t.strictSame(more, [])
})

t.test('registered without a secret it failed in the words of node:crypto', async t => {
  const secret = 'a'.repeat(32)
  const wrong = [
    {},
    { secret: undefined },
    { secret: '' },
    { secret: 7 },
    { secret, previous: [''] },
    { secret, previous: [undefined] }
  ]
  for (const options of wrong) {
    const app = await host(t)
    // As JavaScript does, without the types.
    const load = async () => void (await Reflect.apply(app.register, app, [signing, options]))
    await t.rejects(load(), { message: /^The plugin signing needs the option `secret`/ })
  }
})

t.test('the HMAC is that of RFC 2104, for keys and texts of any length', async t => {
  for (const key of ['', 'k', 'ü'.repeat(32), 'x'.repeat(64), 'x'.repeat(65), 'y'.repeat(1_000)]) {
    const mac = macOf(key)
    for (const text of [
      '',
      'Hi There',
      'ü€😀'.repeat(500),
      'x'.repeat(2_048),
      'x'.repeat(2_049),
      'z'.repeat(100_000),
      'a'
    ]) {
      const expected = createHmac('sha256', key).update(text).digest('hex')
      if (mac(text) !== expected) t.fail(`${key.length} and ${text.length}`)
    }
  }
  t.equal(
    macOf('Jefe')('what do ya want for nothing?'),
    '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843'
  )
})

// over HTTP

const plugins = { signing: { secret } }

t.test('the SDK takes signed answers and streams, and what it got verifies', async t => {
  const { upstream, client, url } = await stack(t, { plugins })
  const script = (usage: boolean) => sse(wireChunks(['Grüße', ' aus', ' 東京'], { usage }))
  const post = (body: object) =>
    fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body)
    })

  upstream.script(json(wireCompletion({ content: 'Hi' })))
  const answer = await client.chat.completions.create(hello)
  t.equal(answer.choices[0]?.message.content, 'Hi')
  t.match(Reflect.get(answer, 'signature'), /^[0-9a-f]{64}$/)

  upstream.script(json(wireCompletion({ content: 'Hi' })))
  const response = await post(hello)
  t.match(response.headers.get('x-gateway-key-id'), /^[0-9a-f]{16}$/)
  t.equal(response.headers.has('x-gateway-receipt'), false)
  t.equal(verifyAnswer(await response.text(), secret), true)

  for (const include_usage of [true, false]) {
    await t.test(`include_usage: ${include_usage}`, async t => {
      const body = { ...hello, stream: true as const, stream_options: { include_usage } }
      upstream.script(request => script(wantsUsage(request)))
      const got: OpenAI.ChatCompletionChunk[] = []
      for await (const chunk of await client.chat.completions.create(body)) got.push(chunk)
      t.equal(got.map(({ choices }) => choices[0]?.delta.content ?? '').join(''), 'Grüße aus 東京')
      t.equal(got.filter(({ usage }) => usage).length, include_usage ? 1 : 0)
      const last = got.at(-1)!
      t.match(last, {
        ...got[0],
        choices: [],
        usage: undefined,
        service_tier: undefined,
        system_fingerprint: undefined,
        x_signature: /^[0-9a-f]{64}$/,
        x_signature_final: /^[0-9a-f]{64}$/
      })

      upstream.script(request => script(wantsUsage(request)))
      const stream = client.chat.completions.stream(body)
      t.equal((await stream.finalMessage()).content, 'Grüße aus 東京')
      const final = await stream.finalChatCompletion()
      t.equal(final.choices.length, 1)
      t.equal(final.usage?.completion_tokens, include_usage ? 3 : undefined)

      upstream.script(request => script(wantsUsage(request)))
      const response = await post(body)
      t.match(response.headers.get('x-gateway-key-id'), /^[0-9a-f]{16}$/)
      const text = await response.text()
      t.equal(verifyStream(text, secret), 'valid')
      t.equal(text.includes('"total_tokens"'), include_usage)
    })
  }

  upstream.script(failure(400, { message: 'no' }))
  const refused = await post(hello)
  t.equal(refused.status, 400)
  t.equal(refused.headers.has('x-gateway-key-id'), false)
  t.strictSame(Object.keys(JSON.parse(await refused.text())), ['error'], 'an error is not signed')
})

t.test('a repeat over HTTP verifies, whole and streamed', async t => {
  const { upstream, url } = await stack(t, { plugins })
  upstream.script(request => (request.json.stream ? sse(wireChunks('one two')) : json(wireCompletion())))
  for (const stream of [false, true]) {
    const texts = []
    for (const replayed of [null, 'true']) {
      const response = await fetch(`${url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'idempotency-key': `key-${stream}` },
        body: JSON.stringify({ ...hello, stream })
      })
      t.equal(response.headers.get('idempotency-replayed'), replayed)
      texts.push(await response.text())
    }
    t.equal(texts[0], texts[1], 'the same secret signs the same answer alike')
    for (const text of texts) t.ok(stream ? verifyStream(text, secret) === 'valid' : verifyAnswer(text, secret))
  }
  t.equal(upstream.requests.length, 2)
})

t.test('inside a host: below its prefix, and in process', async t => {
  const app = Fastify()
  t.teardown(() => app.close())
  const providers = { echo: { type: 'echo' as const, words: 3 } }
  await app.register(modelGateway, {
    prefix: '/llm',
    store: false,
    providers,
    plugins: { ...plugins, rateLimit: false }
  })
  const request = { model: 'echo/echo', messages: [{ role: 'user' as const, content: 'one two three' }] }
  const call = (stream: boolean) => ({
    method: 'POST' as const,
    url: '/llm/v1/chat/completions',
    payload: { ...request, stream }
  })
  t.equal(verifyAnswer((await app.inject(call(false))).body, secret), true)
  t.equal(verifyStream((await app.inject(call(true))).body, secret), 'valid')
  const answer = await app.gateway.complete(request, app.gateway.caller())
  t.equal(!answer.stream && app.gateway.signing?.verify(answer.body), true)
  t.equal(
    verifyStream(await written(await app.gateway.complete({ ...request, stream: true }, app.gateway.caller())), secret),
    'valid'
  )
  t.equal((await app.inject('/llm/.well-known/jwks.json')).statusCode, 404, 'there are no receipts')
})

t.test('without signing an answer is the bytes of its provider', async t => {
  const { upstream, url, app } = await stack(t)
  const body = JSON.stringify(wireCompletion())
  upstream.script(json(wireCompletion()))
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(hello)
  })
  t.equal(await response.text(), body)
  t.equal(response.headers.has('x-gateway-key-id'), false)
  t.equal(app.gateway.signing, undefined)
})

// receipts

function keyPair(type: 'ed25519' | 'x25519' = 'ed25519') {
  const { privateKey, publicKey } = generateKeyPairSync(type as 'ed25519')
  return {
    pem: String(privateKey.export({ format: 'pem', type: 'pkcs8' })),
    jwk: JSON.stringify(privateKey.export({ format: 'jwk' })),
    publicPem: String(publicKey.export({ format: 'pem', type: 'spki' })),
    publicJwk: publicKey.export({ format: 'jwk' })
  }
}

const key = keyPair()
const sha256 = (text: string) => hash('sha256', text, 'hex')

async function receiving(t: Test, previousKeys: string[] = []) {
  const receipts = { privateKey: key.pem, previousKeys }
  const { upstream } = await stack(t)
  const app = await build(t, {
    providers: { up: { type: 'openai-compatible', baseUrl: upstream.url, apiKeys: ['sk-x'] } },
    models: { test: { targets: [{ provider: 'up', model: 'upstream-model', price: { input: 1, output: 2 } }] } },
    plugins: { signing: { secret, receipts } }
  })
  const { keys } = (await app.inject('/.well-known/jwks.json')).json()
  const check = async (jws: unknown) => (await jwtVerify(String(jws), createLocalJWKSet({ keys }))).payload
  const call = (payload: object, headers = {}) =>
    app.inject({ method: 'POST', url: '/v1/chat/completions', payload, headers })
  return { app, upstream, keys, check, call }
}

t.test('a receipt says who asked what, who answered what, and for how much', async t => {
  const { upstream, check, call, keys } = await receiving(t)
  const sent = { tenant: 'public', ...hello, temperature: 1.0 }
  upstream.script(json(wireCompletion({ content: 'Hi' })))
  const response = await call(sent)
  const receipt = await check(response.headers['x-gateway-receipt'])
  const { signature, ...answer } = response.json()
  const usage = answer.usage
  const cost = usage.prompt_tokens * 1_000 + usage.completion_tokens * 2_000
  t.strictSame(receipt, {
    iat: receipt.iat,
    jti: response.headers['x-request-id'],
    tenant: 'public',
    alias: 'test',
    model: answer.model,
    provider: 'up',
    target: 'upstream-model',
    request: sha256(canonical(sent)),
    answer: sha256(canonical(answer)),
    usage: {
      tokens_in: usage.prompt_tokens,
      tokens_out: usage.completion_tokens,
      source: 'reported',
      input: usage.prompt_tokens,
      output: usage.completion_tokens
    },
    cost_usd: response.headers['x-gateway-cost-usd'],
    cost_nano_usd: cost,
    price_version: 'config',
    policy_version: null,
    config: receipt['config']
  })
  t.match(receipt['config'], /^[0-9a-f]{12}$/)
  t.ok(Math.abs(Date.now() / 1_000 - receipt.iat!) < 60)
  t.equal(
    keys[0].kid,
    JSON.parse(Buffer.from(String(response.headers['x-gateway-receipt']).split('.')[0]!, 'base64url').toString()).kid
  )
})

t.test('the receipt of a stream is in its last chunk, and signed with it', async t => {
  for (const usage of [true, false]) {
    const { upstream, check, call, app } = await receiving(t)
    upstream.script(request => sse(wireChunks('one two three', { usage: wantsUsage(request) })))
    const response = await call({ ...hello, stream: true, stream_options: { include_usage: usage } })
    t.equal(verifyStream(response.body, secret), 'valid')
    t.equal(response.headers['x-gateway-receipt'], undefined)
    const chunks = response.body
      .split('\n\n')
      .flatMap(event => (event.startsWith('data: {') ? [JSON.parse(event.slice(6))] : []))
    const receipt = await check(chunks.at(-1).x_receipt)
    const heard = chunks.slice(0, -1).map(({ x_signature, ...chunk }) => `${canonical(chunk)}\n`)
    t.equal(receipt['answer'], sha256(heard.join('')))
    t.match(receipt, {
      provider: 'up',
      target: 'upstream-model',
      cost_nano_usd: 9 * 1_000 + 3 * 2_000,
      cost_usd: '0.000015',
      usage: { tokens_out: 3, source: 'reported' }
    })
    t.match(receipt['model'], chunks[0].model)
    t.equal(verifyStream(response.body.replace(/"x_receipt":"[^"]*"/, '"x_receipt":"x"'), secret), 'forged')
    t.equal(app.gateway.running, 0)
  }
})

t.test('a repeat has a receipt of its own, for nothing', async t => {
  const { upstream, check, call } = await receiving(t)
  upstream.script(json(wireCompletion()))
  const headers = { 'idempotency-key': 'once' }
  const [first, second] = [await call(hello, headers), await call(hello, headers)]
  const [one, two] = [await check(first.headers['x-gateway-receipt']), await check(second.headers['x-gateway-receipt'])]
  t.not(one.jti, two.jti)
  t.equal(one['answer'], two['answer'])
  t.match(two, {
    provider: null,
    target: null,
    cost_nano_usd: 0,
    cost_usd: '0',
    price_version: null,
    model: first.json().model
  })
})

t.test('former keys stay published, each once, and nobody needs a key of the gateway to read them', async t => {
  const before = keyPair()
  const previous = [before.publicPem, JSON.stringify(before.publicJwk), key.publicPem]
  const { keys, app } = await receiving(t, previous)
  t.equal(keys.length, 2)
  t.match(keys, [
    { kty: 'OKP', crv: 'Ed25519', use: 'sig', alg: 'EdDSA', x: key.publicJwk.x },
    { x: before.publicJwk.x }
  ])
  t.notMatch(JSON.stringify(keys), '"d"')
  const response = await app.inject('/.well-known/jwks.json')
  t.equal(response.headers['cache-control'], 'public, max-age=300')
  t.equal(response.headers['content-type'], 'application/json; charset=utf-8')
})

t.test('keys are PEM, PEM of a variable with \\n, or a JWK', async t => {
  for (const privateKey of [key.pem, key.pem.replaceAll('\n', '\\n'), key.jwk]) {
    const { gateway } = await signed(t, { receipts: { privateKey } })
    t.match(gateway.signing?.jwks?.keys, [{ x: key.publicJwk.x }], 'without HTTP too')
  }
})

t.test('what is no key is a fault of the configuration that shows nothing of it', async t => {
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2_048 }).privateKey.export({ format: 'pem', type: 'pkcs8' })
  const faults = (receipts: object) => {
    try {
      readConfig({ plugins: { signing: { secret, receipts } } })
      return []
    } catch (error) {
      return error instanceof ConfigError ? error.faults : [error]
    }
  }
  const hidden = (allowed: string) => `found <hidden>; allowed: an Ed25519 ${allowed}, as PEM or as a JWK`
  for (const privateKey of ['hunter2', '{"kty":"OKP"}', String(rsa), keyPair('x25519').pem, key.publicPem]) {
    t.strictSame(faults({ privateKey }), [`plugins.signing.receipts.privateKey: ${hidden('private key')}`])
  }
  for (const other of ['hunter2', key.pem, key.jwk]) {
    t.strictSame(faults({ privateKey: key.pem, previousKeys: [other] }), [
      `plugins.signing.receipts.previousKeys[0]: ${hidden('public key')}`
    ])
  }
  t.strictSame(faults({ privateKey: key.pem, previousKeys: [key.publicPem] }), [])
})

t.test('a receipt is of the request as it came in, whatever layers make of it', async t => {
  const app = await host(t)
  app.gateway.intercept('shape', (inference, next) => {
    inference.request = { ...inference.request, temperature: 0 }
    return next(inference)
  })
  await app.register(signing, { secret, receipts: { privateKey: key.pem } })
  await app.ready()
  const answer = await app.gateway.complete(ask, app.gateway.caller())
  const [, claims] = String(header(answer, 'x-gateway-receipt')).split('.')
  t.equal(JSON.parse(Buffer.from(claims!, 'base64url').toString()).request, sha256(canonical(ask)))
})

t.test('a receipt waits for a provider call that did not win', async t => {
  const rude: Send = () => new Promise(() => {})
  const target = (provider: string) => ({ provider, model: 'm', weight: 1 })
  const app = await host(t, {
    providers: [scripted('one', rude), scripted('two', says('two', tokens(1, 1)))],
    routing: {
      models: { test: { strategy: 'priority', hedge: { after: 1 }, targets: [target('one'), target('two')] } }
    }
  })
  app.gateway.accountWith({ cost: () => 5 })
  await app.register(signing, { secret, receipts: { privateKey: key.pem } })
  await app.ready()
  const claims = (jws: unknown) => JSON.parse(Buffer.from(String(jws).split('.')[1]!, 'base64url').toString())
  const answer = await app.gateway.complete(ask, app.gateway.caller())
  t.equal(answer.facts.cost, 10)
  t.match(claims(header(answer, 'x-gateway-receipt')), { cost_nano_usd: 10, cost_usd: '0.00000001', provider: 'two' })
  const chunks = await chunksOf(await app.gateway.complete(askStream, app.gateway.caller()))
  t.match(claims(chunks.at(-1)?.['x_receipt']), { cost_nano_usd: null, cost_usd: null }, 'a stream cannot: unknown')
})

t.test('a request that cannot be hashed is refused where receipts are given', async t => {
  const { gateway } = await signed(t, { receipts: { privateKey: key.pem } })
  const request = { ...ask, x: JSON.parse('['.repeat(50_000) + ']'.repeat(50_000)) }
  t.match(await rejection(gateway.complete(request, gateway.caller())), { statusCode: 400 })
})

t.test('a browser may read the headers', async t => {
  const app = await build(t, { plugins, server: { cors: { origin: ['https://app.example'], credentials: false } } })
  const { headers } = await app.inject({ url: '/health', headers: { origin: 'https://app.example' } })
  t.match(headers['access-control-expose-headers'], /x-gateway-key-id, x-gateway-receipt/)
})
