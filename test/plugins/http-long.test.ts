import { once } from 'node:events'
import { connect } from 'node:net'
import { Readable } from 'node:stream'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import { request } from 'undici'
import { cutKey, cutting, mending } from '../../plugins/http/long.ts'
import { build, hello, stack, towards } from '../helper.ts'
import { completion, json, seeded, startUpstream, turn } from '../upstream.ts'

const limit = 10 * 1024 * 1024
const path = '/v1/chat/completions'
const long = 'iVBORw0K/+=='.repeat(30_000)
/** Makes a body large enough to be looked through. */
const filler = ' '.repeat(1_048_576)

interface Read {
  /** The value as JSON, or the code of the fault. */
  said: string
  /** How many bytes Fastify parsed, the last time if more than once. */
  parsed: number
  times: number
}

/** A server that says what it read, as Fastify does by itself or with long strings cut out. */
async function reader(t: Test, cuts: boolean) {
  const app = Fastify({ bodyLimit: limit })
  t.teardown(() => app.close())
  const read: Read = { said: '', parsed: 0, times: 0 }
  const careful = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.decorateRequest(cutKey, null)
  if (cuts) app.addHook('preParsing', cutting(limit))
  app.addContentTypeParser<string>(
    'application/json',
    { parseAs: 'string' },
    mending((request, body, done) => {
      read.parsed = body.length
      read.times++
      return careful(request, body, done)
    })
  )
  app.setErrorHandler((error: { code?: string }, _request, reply) => {
    read.said = error.code ?? 'none'
    return reply.code(400).send({})
  })
  app.post('/', request => {
    read.said = JSON.stringify(request.body)
    return {}
  })
  return async (bytes: Buffer | string, split?: readonly number[]): Promise<Read> => {
    Object.assign(read, { said: '', parsed: 0, times: 0 })
    await app.inject({ method: 'POST', url: '/', ...sent(Buffer.from(bytes), split) })
    return { ...read }
  }
}

function sent(bytes: Buffer, split: readonly number[] = []) {
  const cuts = [0, ...split, bytes.length]
  const parts = cuts.slice(1).map((end, index) => bytes.subarray(cuts[index], end))
  const headers = { 'content-type': 'application/json', 'content-length': String(bytes.length) }
  return { headers, payload: split.length === 0 ? bytes : Readable.from(parts) }
}

async function both(t: Test) {
  const [plain, cut] = [await reader(t, false), await reader(t, true)]
  /** True when the strings were cut out and the rest was all that had to be parsed. */
  return async (bytes: Buffer | string, name: string, split?: readonly number[]): Promise<boolean> => {
    const [wanted, found] = [await plain(bytes), await cut(bytes, split)]
    t.ok(wanted.said !== '' && found.said === wanted.said, `${name}: the same is read`)
    return found.times === 1 && found.parsed < wanted.parsed
  }
}

const image = (url: string) => `{"type":"image_url","image_url":{"url":"${url}"}}`
const chat = (...parts: string[]) => chatWith(filler, ...parts)
const chatWith = (rest: string, ...parts: string[]) =>
  `{"model":"m","messages":[{"role":"user","content":[${parts.join(',')}]}]${rest}}`

t.test('long strings are taken out before a body is parsed, and come back', async t => {
  const same = await both(t)
  t.ok(await same(chat(image(long)), 'one image'))
  t.ok(await same(chat(image(long), image('data:,'), image(`${long}A`), image(long)), 'several'))
  t.ok(await same(chat(image(long), '"Grüße 👋🏽"', '"Gr\\u00fc\\u00dfe"'), 'beside other text'))
  t.ok(await same(`${filler}"${long}"`, 'nothing else'))
  t.ok(await same(`${filler}["${long}", "${long}" ,\n"${long}"\t]`, 'between spaces'))
  t.ok(await same(`{"2":"${long}2","b":"${long}b","1":"${long}1"${filler}}`, 'names that JavaScript sorts'))
  t.ok((await same(`{"b":"${long}","a":"${long.slice(1)}","b":"x"${filler}}`, 'a name twice')) === false)
  t.ok(await same(`{"b":"x","b":"${long}"${filler}}`, 'a name twice, the long one last'))
  t.ok(await same(`\ufeff${chat(image(long))}`, 'after a byte order mark, which Fastify passes over'))
  t.notOk(await same(chat('"short"'), 'no long string'))
})

t.test('what JSON reads in another way stays in the body', async t => {
  const same = await both(t)
  for (const inner of ['\\"', '\\\\', '\\n', '\\/', '\\u0041', 'ü', '字', '👋', '\ufeff', '\u2028']) {
    for (const text of [inner + long, long + inner, long + inner + long])
      t.notOk(await same(chat(image(text)), `with ${inner.codePointAt(inner.length - 1)}`))
  }
  for (const inner of [' ', '~', '\u007f', ':', ',', '{}[]'])
    t.ok(await same(chat(image(long + inner)), `with ${inner.codePointAt(0)}`))
})

t.test('long runs that are no values are read as ever', async t => {
  const same = await both(t)
  const numbers = '0.125,'.repeat(60_000)
  const cases = {
    'numbers between strings': `["a",${numbers}"b"]`,
    'numbers after a string': `{"a":[${numbers}1],"b":2}`,
    'spaces between strings': `["a",${' '.repeat(300_000)}"b"]`,
    'the name of a field': `{"${long}":1}`,
    'the name of a field with a long value': `{"${long}":"${long}"}`,
    'after an escaped quote': `["\\"${long}"]`,
    'between escaped quotes': `["\\"${long}\\""]`
  }
  for (const [name, text] of Object.entries(cases)) t.notOk(await same(text + filler, name), name)
  t.ok(await same(`[",${' '.repeat(300_000)}:","b"]${filler}`, 'a string that looks like structure'))
})

t.test('what JSON.parse refuses is refused with a long string in it', async t => {
  const same = await both(t)
  const whole = chat(image(long))
  const at = whole.indexOf('iVBOR')
  const cases: Array<string | Buffer> = [
    `${filler}"${long}`,
    `${filler}${long}"`,
    `${filler}"${long}"x`,
    `${filler}"${long}""${long}"`,
    `${filler}["${long}""b"]`,
    `${filler}["${long}" "b"]`,
    `${filler}["${long}",]`,
    `${filler}{"${long}"}`,
    `${filler}{"a":"${long}"`,
    `${filler}{"a" "${long}"}`,
    `${filler}'${long}'`,
    `${whole}${whole}`,
    ...['\n', '\t', '\r', '\u0000', '\u001f'].map(inner => chat(image(long + inner))),
    ...['\\', '\\x', '\\u12', '\\ud'].map(inner => chat(image(long + inner))),
    chat(image(long)).replace('"model"', '"__proto__"'),
    chat(image(long)).replace('"model"', '"\\u005f_proto__"'),
    chat(image(long)).replace('"model":"m"', '"constructor":{"prototype":{}}'),
    `${filler}{"__proto__":"${long}"}`,
    whole.slice(0, at + 400_000),
    whole.slice(0, -1),
    Buffer.concat([Buffer.from(whole.slice(0, at)), Buffer.from([0xff]), Buffer.from(whole.slice(at - 1))])
  ]
  for (const [index, text] of cases.entries()) await same(text, `case ${index}`)
  const cut = await reader(t, true)
  for (const index of cases.keys())
    t.match((await cut(cases[index]!)).said, /^FST_ERR_CTP_INVALID_JSON_BODY$/, `case ${index}`)
})

t.test('bytes that are no UTF-8 are replaced in the same places', async t => {
  const same = await both(t)
  const [before, after] = chat(image(long), '"@"').split('@') as [string, string]
  for (const bytes of [[0xff], [0xc3], [0xf0, 0x9f], [0xed, 0xa0, 0x80], [0x80, 0x80]])
    t.ok(await same(Buffer.concat([Buffer.from(before), Buffer.from(bytes), Buffer.from(after)]), `bytes ${bytes}`))
  const inside = Buffer.from(chat(image(long)))
  inside[inside.indexOf('iVBOR') + 1_000] = 0xc3
  t.notOk(await same(inside, 'inside'))
})

t.test('mutated bodies with long strings are read as Fastify reads them, split anywhere', async t => {
  const same = await both(t)
  const random = seeded(20_261_123)
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!
  const splinters = [...'"\\,:{}[] \nü\u0000', '\\"', '"__proto__":', '"a"', long]
  const rest = `,"metadata":{"a":"${'b'.repeat(1_000_000)}"}${' '.repeat(50_000)}`
  let cuts = 0
  for (let round = 0; round < 150; round++) {
    const parts = Array.from({ length: 1 + Math.floor(random() * 3) }, () => image(pick([long, `${long}\\n`, 'x'])))
    let text = chatWith(rest, ...parts)
    for (let times = Math.floor(random() * 3); times > 0; times--) {
      const near = pick([Math.floor(random() * text.length), text.indexOf('iVBOR'), text.indexOf('"}}'), 60])
      const at = Math.max(0, near + Math.floor(random() * 5) - 2)
      text = text.slice(0, at) + pick(splinters) + text.slice(at + (random() < 0.5 ? 0 : Math.floor(random() * 4)))
    }
    const bytes = Buffer.from(text)
    const split = Array.from({ length: 4 }, () => Math.floor(random() * bytes.length)).sort((a, b) => a - b)
    if (await same(bytes, `round ${round}`, split)) cuts++
  }
  t.ok(cuts > 40, `${cuts} were cut`)
})

t.test('a body that is not as long as it says is refused as ever', async t => {
  for (const cuts of [false, true]) {
    const app = Fastify({ bodyLimit: limit })
    t.teardown(() => app.close())
    app.decorateRequest(cutKey, null)
    if (cuts) app.addHook('preParsing', cutting(limit))
    app.post('/', () => ({}))
    for (const off of [-1, 1, 300_000]) {
      const { headers, payload } = sent(Buffer.from(chat(image(long))))
      headers['content-length'] = String(Number(headers['content-length']) - off)
      const wrong = await app.inject({ method: 'POST', url: '/', headers, payload: Readable.from([payload]) })
      t.equal(wrong.json().code, 'FST_ERR_CTP_INVALID_CONTENT_LENGTH', `${off}`)
    }
  }
})

// Through the gateway

t.test('an image of 8 MB arrives at the provider as it was sent', async t => {
  const { upstream, url } = await stack(t)
  upstream.script(json(completion()))
  const data = 'iVBORw0K/+=='.repeat(700_000)
  const messages = [
    {
      role: 'user',
      content: [
        { type: 'text', text: 'Was ist das? 👀' },
        { type: 'image_url', image_url: { url: data } }
      ]
    }
  ]
  const text = JSON.stringify({ model: 'test', messages, max_tokens: 1_000 })
  for (const body of [text, Readable.from([text])]) {
    const headers = { 'content-type': 'application/json' }
    const answer = await request(url + path, { method: 'POST', headers, body })
    t.equal(answer.statusCode, 200)
    await answer.body.dump()
  }
  const expected = JSON.stringify({ model: 'upstream-model', messages, max_tokens: 1_000 })
  for (const { rawBody } of upstream.requests) t.ok(rawBody.toString() === expected)
  t.equal(upstream.requests.length, 2)
})

t.test('faults in a body with an image are told as in one without', async t => {
  const upstream = await startUpstream()
  upstream.script(json(completion()))
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  const post = async (text: string) => {
    const answer = await app.inject({ method: 'POST', url: path, ...sent(Buffer.from(text)) })
    return { statusCode: answer.statusCode, error: answer.json().error }
  }
  const whole = JSON.stringify({
    ...hello,
    messages: [{ role: 'user', content: [{ type: 'text', text: long + long + long }] }]
  })
  t.equal((await post(whole)).statusCode, 200)
  const invalid = {
    statusCode: 400,
    error: { message: 'The request body is not valid JSON.', param: null }
  }
  t.match(await post(whole.slice(0, -1)), invalid)
  t.match(await post(whole.replace('"model"', '"__proto__"')), invalid)
  t.match(await post(whole.replace('"user"', '1')), { statusCode: 400, error: { param: 'messages[0].role' } })
})

t.test('a client that leaves in the middle of an image disturbs nobody', async t => {
  const { upstream, app, url } = await stack(t)
  const { port, hostname } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.write(
    `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 8000000\r\n\r\n{"model":"${long}`
  )
  const [incoming, response] = await once(app.server, 'request')
  await once(incoming, 'data')
  socket.resetAndDestroy()
  await once(response, 'close')
  await turn()
  t.equal(app.gateway.running, 0)
  t.equal(upstream.requests.length, 0)
  const answer = await app.inject({ method: 'POST', url: path, payload: hello })
  t.equal(answer.statusCode, 200)
})
