import t from 'tap'
import { askedOf, originOf, pathOf, rootOf } from '../../../providers/vertex/address.ts'

t.test('a region, a multi-region and global each have a host of their own', async t => {
  for (const [location, host] of Object.entries({
    'europe-west1': 'europe-west1-aiplatform.googleapis.com',
    'us-central1': 'us-central1-aiplatform.googleapis.com',
    us: 'aiplatform.us.rep.googleapis.com',
    eu: 'aiplatform.eu.rep.googleapis.com',
    global: 'aiplatform.googleapis.com'
  })) {
    t.equal(originOf({ project: 'p', location }), `https://${host}`)
    t.equal(rootOf({ project: 'p', location }), `/v1/projects/p/locations/${location}/publishers`)
  }
})

t.test('the express mode has neither a project nor a location', async t => {
  t.equal(originOf({ location: 'europe-west1' }), 'https://aiplatform.googleapis.com')
  t.equal(rootOf({ location: 'europe-west1' }), '/v1/publishers')
})

t.test('what is no location or project makes no address', async t => {
  for (const location of ['', 'evil.example/', 'a.b', 'EU', '-eu', 'x@evil.example', 'eu\n']) {
    t.throws(() => originOf({ project: 'p', location }), /location is not/, location)
  }
  for (const project of ['', '../x', 'a/b', 'a?b', 'a#b', 'a%2f', ' a']) {
    t.throws(() => rootOf({ project, location: 'eu' }), /project is not/, project)
  }
  t.equal(rootOf({ project: 'example.com:old', location: 'eu' }).split('/')[3], 'example.com:old')
})

for (const [name, publisher, model] of [
  ['gemini-2.5-flash', 'google', 'gemini-2.5-flash'],
  ['publishers/google/models/gemini-2.5-flash', 'google', 'gemini-2.5-flash'],
  ['google/gemini-2.5-flash', 'google', 'gemini-2.5-flash'],
  ['gemma-3-27b-it', 'google', 'gemma-3-27b-it'],
  ['claude-opus-4-1@20250805', 'anthropic', 'claude-opus-4-1@20250805'],
  ['publishers/anthropic/models/claude-sonnet-4-5', 'anthropic', 'claude-sonnet-4-5'],
  ['publishers/anthropic/models/next', 'anthropic', 'next'],
  ['anthropic/claude-sonnet-4-5', 'anthropic', 'claude-sonnet-4-5']
] as const) {
  t.test(`${name} is a model of ${publisher}`, async t => {
    t.strictSame(askedOf(name), { publisher, model })
  })
}

for (const name of [
  ...['', '..', 'a/b', '../../endpoints/x', 'a:b', 'a?alt=x', 'a#b', 'a%2fb', 'a b', 'a\nb', '-a', 'ü'],
  ...['publishers/meta/models/llama', 'publishers/anthropic/models/../x', 'google/models/', 'x'.repeat(129)]
]) {
  t.test(`no path is made of ${JSON.stringify(name.slice(0, 40))}`, async t => {
    try {
      t.fail(JSON.stringify(askedOf(name)))
    } catch (error) {
      t.match(error, { statusCode: 400, param: 'model', blame: 'target' })
    }
  })
}

t.test('streams have methods of their own', async t => {
  const gemini = askedOf('gemini-2.5-flash')
  t.equal(pathOf(gemini, false), '/google/models/gemini-2.5-flash:generateContent')
  t.equal(pathOf(gemini, true), '/google/models/gemini-2.5-flash:streamGenerateContent?alt=sse')
  const claude = askedOf('claude-opus-4-1@20250805')
  t.equal(pathOf(claude, false), '/anthropic/models/claude-opus-4-1@20250805:rawPredict')
  t.equal(pathOf(claude, true), '/anthropic/models/claude-opus-4-1@20250805:streamRawPredict')
})
