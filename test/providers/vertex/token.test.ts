import { createVerify, generateKeyPairSync } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { createGoogleTokens } from '../../../providers/vertex/token.ts'
import type { GatewayError } from '../../../schemas/errors.ts'
import {
  bytes,
  failure,
  json,
  type Received,
  redirect,
  reset,
  type Script,
  silence,
  startUpstream
} from '../../upstream.ts'

// Nobody but the servers of this test is asked, whatever the machine says.
const home = t.testdir()
for (const name of ['GOOGLE_APPLICATION_CREDENTIALS', 'HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'http_proxy']) {
  delete process.env[name]
}
Object.assign(process.env, { HOME: home, APPDATA: home, METADATA_SERVER_DETECTION: 'none' })

const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const key = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
const account = {
  type: 'service_account',
  project_id: 'my-project',
  private_key_id: 'key-1',
  private_key: key,
  client_email: 'gateway@my-project.iam.gserviceaccount.com',
  client_id: '1',
  token_uri: 'https://oauth2.googleapis.com/token'
}
const { signal } = new AbortController()

function granted(number: number) {
  return { access_token: `ya29.token-${number}`, expires_in: 3599, token_type: 'Bearer' }
}

/** A token server on this machine, and what asks it with a service account. */
async function started(t: Test, script?: Script, credentials = JSON.stringify(account)) {
  let made = 0
  const server = await startUpstream({ script: script ?? (() => json(granted(++made))) })
  t.teardown(() => server.close())
  const tokens = await createGoogleTokens(credentials, `http://127.0.0.1:${server.port}/token`)
  return { server, tokens }
}

async function faultOf(promise: Promise<unknown>): Promise<GatewayError> {
  try {
    await promise
  } catch (error) {
    return error as GatewayError
  }
  throw new Error('This should have failed.')
}

/** The claims of an assertion whose signature is right. */
function claimsOf(request: Received | undefined) {
  const form = new URLSearchParams(request?.rawBody.toString())
  const [head = '', claims = '', signature = ''] = (form.get('assertion') ?? '').split('.')
  const verify = createVerify('RSA-SHA256').update(`${head}.${claims}`)
  if (!verify.verify(publicKey, signature, 'base64url')) throw new Error('The signature is wrong.')
  return { grant: form.get('grant_type'), ...JSON.parse(Buffer.from(claims, 'base64url').toString()) }
}

function loaded(): boolean {
  return Object.keys(createRequire(import.meta.url).cache).some(name => name.includes('google-auth-library'))
}

t.test("Google's library is loaded with the first token and not before", async t => {
  const { server, tokens } = await started(t)
  await createGoogleTokens()
  t.notOk(loaded())
  t.equal(server.requests.length, 0)
  await tokens.get(signal)
  t.ok(loaded())
})

t.test('a service account signs who it is and what for', async t => {
  mock.timers.enable({ apis: ['Date'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  const { server, tokens } = await started(t)
  t.equal(await tokens.get(signal), 'ya29.token-1')
  t.match(claimsOf(server.requests[0]), {
    grant: 'urn:ietf:params:oauth:grant-type:jwt-bearer',
    iss: account.client_email,
    scope: 'https://www.googleapis.com/auth/cloud-platform',
    aud: 'https://oauth2.googleapis.com/token',
    iat: 1_790_000_000,
    exp: 1_790_003_600
  })
  t.notMatch(server.requests[0]?.rawBody.toString(), 'PRIVATE')
})

t.test('50 calls at the same time ask once', async t => {
  const { server, tokens } = await started(t)
  const values = await Promise.all(Array.from({ length: 50 }, () => tokens.get(signal)))
  t.strictSame(new Set(values), new Set(['ya29.token-1']))
  t.equal(server.requests.length, 1)
})

t.test('a token is kept for its time, and a key on disk may change meanwhile', async t => {
  mock.timers.enable({ apis: ['Date'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  const file = join(t.testdir({ 'key.json': JSON.stringify(account) }), 'key.json')
  const { server, tokens } = await started(t, undefined, file)
  await tokens.get(signal)
  mock.timers.tick(54 * 60_000)
  t.equal(await tokens.get(signal), 'ya29.token-1')
  writeFileSync(file, JSON.stringify({ ...account, client_email: 'other@my-project.iam.gserviceaccount.com' }))
  mock.timers.tick(6 * 60_000)
  t.equal(await tokens.get(signal), 'ya29.token-2')
  t.match(claimsOf(server.requests[1]), { iss: 'other@my-project.iam.gserviceaccount.com' })
  rmSync(file)
  mock.timers.tick(60 * 60_000)
  t.match(await faultOf(tokens.get(signal)), { blame: 'key', message: /its credentials cannot be read/ })
})

t.test('a token that is refused before its time is asked for anew', async t => {
  mock.timers.enable({ apis: ['Date'], now: 1_790_000_000_000 })
  t.teardown(() => mock.timers.reset())
  const { tokens } = await started(t)
  const value = await tokens.get(signal)
  mock.timers.tick(60_000)
  tokens.refused(value)
  t.equal(await tokens.get(signal), 'ya29.token-2')
})

t.test('a refused account is the fault of the key, and nothing secret is told', async t => {
  const body = { error: 'invalid_grant', error_description: 'Invalid JWT Signature: eyJhbGciOi.eyJpc3Mi.c2lnbmF0dXJl' }
  const { tokens } = await started(t, json(body, { status: 400 }))
  const fault = await faultOf(tokens.get(signal))
  t.match(fault, { code: 'GATEWAY_UPSTREAM_ERROR', statusCode: 502, blame: 'key' })
  t.match(fault.headers, { 'x-should-retry': 'false' })
  t.match(fault.cause, { message: /400: invalid_grant: Invalid JWT Signature: \[redacted\]/ })
  for (let error: unknown = fault; error instanceof Error; error = error.cause) {
    const shown = JSON.stringify(error, Object.getOwnPropertyNames(error))
    t.notMatch(shown, /eyJ|assertion=|PRIVATE KEY/)
  }
})

for (const [name, script] of Object.entries({
  'breaks off': reset(),
  'is down': failure(503),
  'answers without a token': json({ token_type: 'Bearer', expires_in: 3599 }),
  'answers with something else': bytes('<html>', { headers: { 'content-type': 'text/html' } }),
  'sends elsewhere': redirect('http://127.0.0.1:1/')
})) {
  t.test(`a token endpoint that ${name} is a fault of the provider, and is asked once`, async t => {
    const { server, tokens } = await started(t, script)
    t.match(await faultOf(tokens.get(signal)), { statusCode: 502, blame: 'provider', message: /its token endpoint/ })
    t.equal(server.requests.length, 1)
  })
}

t.test('a request for a token ends with its deadline', async t => {
  const { server, tokens } = await started(t, silence())
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const waiting = faultOf(tokens.get(signal))
  const request = await server.received()
  mock.timers.tick(10_000)
  t.match(await waiting, { statusCode: 504, blame: 'time' })
  t.equal((await request.closed).how, 'aborted')
})

// Keys that are none

const otherKey = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' })
for (const [name, credentials, message] of [
  ['a file that is not there', '/nowhere/key.json', /file of the credentials cannot be read: ENOENT/],
  ['no JSON', '{"type": "service_account", hunter2', /not JSON/],
  ['no object', '{}', /not the key of a service account/],
  ['another kind', JSON.stringify({ ...account, type: 'authorized_user' }), /not the key of a service account/],
  ['no key', JSON.stringify({ ...account, private_key: 'hunter2' }), /private_key that can be read/],
  ['a key of another kind', JSON.stringify({ ...account, private_key: otherKey }), /private_key that can be read/],
  ['no name', JSON.stringify({ ...account, client_email: undefined }), /lack a client_email/]
] as const) {
  t.test(`credentials with ${name} are refused at the start, and not quoted`, async t => {
    const error = (await faultOf(createGoogleTokens(credentials))) as Error
    t.match(error.message, message)
    t.notMatch(String(error.stack), /hunter2|PRIVATE/)
  })
}

for (const uri of [
  ...['http://oauth2.googleapis.com/token', 'https://evil.example/token', 'https://googleapis.com.evil.example/token'],
  ...[
    'https://evilgoogleapis.com/',
    'https://oauth2.googleapis.com@evil.example/',
    'https://oauth2.googleapis.com:8443/',
    'x',
    5
  ]
]) {
  t.test(`a key file that sends to ${uri} is refused`, async t => {
    await t.rejects(
      createGoogleTokens(JSON.stringify({ ...account, token_uri: uri })),
      /token_uri .* not one of Google/
    )
  })
}

t.test('older key files name another host of Google', async t => {
  for (const token_uri of ['https://accounts.google.com/o/oauth2/token', undefined]) {
    const { tokens } = await started(t, undefined, JSON.stringify({ ...account, token_uri }))
    t.equal(await tokens.get(signal), 'ya29.token-1')
  }
})

// The machine's own identity

t.test('a machine without an identity is the fault of the key', async t => {
  const tokens = await createGoogleTokens()
  const fault = await faultOf(tokens.get(signal))
  t.match(fault, { blame: 'key', statusCode: 502, message: /Google knows no identity of this gateway/ })
  t.match(fault.cause, { message: /default credentials/ })
})

t.test('a key file that the environment names is the identity of the machine', async t => {
  const file = join(t.testdir({ 'key.json': JSON.stringify(account) }), 'key.json')
  process.env['GOOGLE_APPLICATION_CREDENTIALS'] = file
  t.teardown(() => delete process.env['GOOGLE_APPLICATION_CREDENTIALS'])
  const server = await startUpstream({ script: json(granted(1)) })
  t.teardown(() => server.close())
  const tokens = await createGoogleTokens(undefined, `http://127.0.0.1:${server.port}/`)
  t.equal(await tokens.get(signal), 'ya29.token-1')
  t.match(claimsOf(server.requests[0]), { iss: account.client_email })
})

t.test("a machine of Google's asks its metadata server, when a token is needed", async t => {
  const server = await startUpstream({
    script: ({ url }) => {
      const headers = { 'metadata-flavor': 'Google' }
      if (url.includes('/token')) return json({ ...granted(7), expires_in: 3599 }, { headers })
      return bytes(url.includes('universe') ? 'googleapis.com' : 'ok', { headers })
    }
  })
  t.teardown(() => server.close())
  process.env['GCE_METADATA_HOST'] = `127.0.0.1:${server.port}`
  process.env['METADATA_SERVER_DETECTION'] = 'assume-present'
  t.teardown(() => delete process.env['GCE_METADATA_HOST'])
  const tokens = await createGoogleTokens()
  t.equal(server.requests.length, 0)
  t.equal(await tokens.get(signal), 'ya29.token-7')
  t.ok(server.requests.every(({ headers }) => headers['metadata-flavor'] === 'Google'))
})
