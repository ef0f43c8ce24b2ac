import { randomBytes } from 'node:crypto'
import { getEventListeners } from 'node:events'
import t, { type Test } from 'tap'
import { createMedia, isPublic, type Link, type MediaOptions, type Resolve } from '../../providers/media.ts'
import { bytes, redirect, repeat, type Script, silence, sse, startUpstream } from '../upstream.ts'

const png = { headers: { 'content-type': 'image/png' } }
const { signal: never } = new AbortController()

async function server(t: Test, script: Script) {
  const upstream = await startUpstream({ script })
  t.teardown(() => upstream.close())
  return upstream
}

function link(url: string, kind: Link['kind'] = 'image'): Link {
  return { url, kind, param: `the place of ${url}` }
}

/** One link to what a server says, read where private addresses are allowed. */
async function read(t: Test, script: Script, options: MediaOptions & { kind?: Link['kind'] } = {}) {
  const { kind, ...own } = options
  const upstream = await server(t, script)
  const url = `http://127.0.0.1:${upstream.port}/a`
  const media = createMedia({ allowPrivate: true, ...own })([link(url, kind)], never)
  return { upstream, media: media.then(found => found.get(url)) }
}

async function fault(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('This should have failed.')
}

t.test('what a link leads to is base64, in whatever pieces it comes', async t => {
  for (const length of [1, 2, 3, 4, 5, 100, 200_000]) {
    const whole = randomBytes(length)
    const reply = bytes(whole, { ...png, cut: { seed: length, max: length > 1_000 ? 50_000 : 3 }, interval: null })
    const { media } = await read(t, reply)
    t.strictSame(await media, { mimeType: 'image/png', data: whole.toString('base64') }, `${length} bytes`)
  }
})

t.test('a PDF is one by its content type, whatever stands beside it', async t => {
  const { media, upstream } = await read(
    t,
    bytes('%PDF', { headers: { 'content-type': 'Application/PDF; charset=binary' } }),
    {
      kind: 'pdf'
    }
  )
  t.match(await media, { mimeType: 'application/pdf', data: Buffer.from('%PDF').toString('base64') })
  const [request] = upstream.requests
  t.equal(request?.method, 'GET')
  t.match(request?.headers, { accept: 'application/pdf', 'accept-encoding': 'identity' })
})

t.test('a link that stands twice is read once, several are read together', async t => {
  const upstream = await server(t, ({ url }) => bytes(url, png))
  const at = (path: string) => `http://127.0.0.1:${upstream.port}${path}`
  const media = await createMedia({ allowPrivate: true })(
    [link(at('/a?x=1')), link(at('/b')), link(at('/a?x=1'))],
    never
  )
  t.same([...media.keys()].sort(), [at('/a?x=1'), at('/b')])
  t.equal(media.get(at('/b'))?.data, Buffer.from('/b').toString('base64'))
  t.equal(upstream.requests.length, 2)
})

t.test('no links, no work', async t => {
  t.same(await createMedia()([], never), new Map())
})

// Where it may lead

t.test('addresses of the open internet, and others', async t => {
  for (const address of [
    '8.8.8.8',
    '1.1.1.1',
    '172.15.0.1',
    '172.32.0.1',
    '100.63.255.255',
    '2606:4700:4700::1111',
    '2a00:1450::1'
  ]) {
    t.equal(isPublic(address), true, address)
  }
  for (const address of [
    ...['0.0.0.0', '10.1.2.3', '100.64.0.1', '100.127.255.255', '127.0.0.1', '127.255.255.255', '169.254.169.254'],
    ...['172.16.0.1', '172.31.255.255', '192.0.0.170', '192.0.2.1', '192.168.0.1', '198.18.0.1', '198.51.100.1'],
    ...['203.0.113.1', '224.0.0.1', '239.255.255.255', '240.0.0.1', '255.255.255.255'],
    ...['::', '::1', '::ffff:8.8.8.8', '::ffff:127.0.0.1', '::ffff:7f00:1', '::127.0.0.1', '64:ff9b::7f00:1'],
    ...['100::1', 'fe80::1', 'fe80::1%eth0', 'fc00::1', 'fd12:3456::1', 'fec0::1', 'ff02::1', '2001:db8::1'],
    ...['2001::1', '2002:7f00:1::', '3fff::1', 'localhost', '']
  ]) {
    t.equal(isPublic(address), false, address)
  }
})

for (const host of [
  '127.0.0.1',
  '[::1]',
  '[::ffff:127.0.0.1]',
  '2130706433',
  '0x7f.1',
  '0177.0.0.1',
  'localhost',
  '0'
]) {
  t.test(`${host} is not read unless that is allowed`, async t => {
    const upstream = await server(t, bytes('PNG', png))
    const url = `http://${host}:${upstream.port}/`
    t.match(await fault(createMedia()([link(url)], never)), {
      code: 'GATEWAY_INVALID_REQUEST',
      statusCode: 400,
      param: `the place of ${url}`,
      message: /open internet/
    })
    t.equal(upstream.requests.length, 0)
    t.equal(upstream.open.connections, 0)
  })
}

t.test('a name that leads to a private address, if only among others, is not read', async t => {
  for (const address of ['127.0.0.1', '::1', '169.254.169.254', '::ffff:10.0.0.1']) {
    const resolve: Resolve = async () => [
      { address: '93.184.216.34', family: 4 },
      { address, family: address.includes(':') ? 6 : 4 }
    ]
    const reading = createMedia({}, resolve)([link('http://inside.example/x.png')], never)
    t.match(await fault(reading), { statusCode: 400, message: /open internet/ }, address)
  }
})

t.test('a name is looked up once, and the connection goes where it led', async t => {
  const upstream = await server(t, bytes('PNG', png))
  const asked: string[] = []
  const resolve: Resolve = async host => {
    // Whoever asks again is sent elsewhere.
    return [{ address: asked.push(host) === 1 ? '127.0.0.1' : '127.0.0.2', family: 4 }]
  }
  const url = `http://rebinding.example:${upstream.port}/x.png`
  const media = await createMedia({ allowPrivate: true }, resolve)([link(url)], never)
  t.equal(media.get(url)?.data, Buffer.from('PNG').toString('base64'))
  t.same(asked, ['rebinding.example'])
  t.equal(upstream.requests[0]?.headers.host, `rebinding.example:${upstream.port}`)
})

t.test('a redirect is not followed', async t => {
  const inside = await server(t, bytes('PNG', png))
  for (const status of [301, 302, 303, 307, 308]) {
    const { media } = await read(t, redirect(`http://127.0.0.1:${inside.port}/`, status))
    t.match(await fault(media), { statusCode: 400, message: /not followed/ })
  }
  t.equal(inside.requests.length, 0)
})

t.test('what is no plain http URL is refused', async t => {
  for (const url of [
    'ftp://a.example/x',
    'file:///etc/passwd',
    'http://user:secret@a.example/',
    'http://',
    'nonsense'
  ]) {
    const error = await fault(createMedia({}, async () => [])([link(url)], never))
    t.match(error, { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400 }, url)
    t.notMatch(error, { message: /secret/ })
  }
})

t.test('a host that nobody knows is the fault of the link', async t => {
  const failing: Resolve = async () => {
    throw Object.assign(new Error('getaddrinfo ENOTFOUND'), { code: 'ENOTFOUND' })
  }
  for (const resolve of [failing, async () => []]) {
    const reading = createMedia({}, resolve)([link('http://nowhere.example/')], never)
    t.match(await fault(reading), { statusCode: 400, message: /not known/ })
  }
})

t.test('a host that does not answer is the fault of the link', async t => {
  const upstream = await server(t, bytes('PNG', png))
  const url = `http://127.0.0.1:${upstream.port}/`
  await upstream.close()
  t.match(await fault(createMedia({ allowPrivate: true })([link(url)], never)), {
    code: 'GATEWAY_INVALID_REQUEST',
    message: /cannot be read/
  })
})

// What it may be

t.test('what is not what was asked for is refused', async t => {
  const typed = (type: string | null, more: object = {}) => bytes('x', { headers: { 'content-type': type, ...more } })
  const refused: Array<[Script, RegExp, Link['kind']?]> = [
    [typed('text/html'), /an image/],
    [typed('application/octet-stream'), /an image/],
    [typed(null), /an image/],
    [typed('application/pdf'), /an image/],
    [typed('image/png'), /a PDF/, 'pdf'],
    [typed('image/png', { 'content-encoding': 'gzip' }), /an image/],
    [bytes('', png), /nothing/],
    [bytes('PNG', { ...png, status: 404 }), /404/],
    [bytes('PNG', { ...png, status: 206 }), /206/]
  ]
  for (const [script, message, kind] of refused) {
    const { media, upstream } = await read(t, script, { kind })
    t.match(await fault(media), { statusCode: 400, param: `the place of http://127.0.0.1:${upstream.port}/a`, message })
  }
})

t.test('what is too large is refused before it is read, or as soon as it shows', async t => {
  const announced = await read(t, bytes('x'.repeat(1_001), png), { maxBytes: 1_000 })
  t.match(await fault(announced.media), { statusCode: 400, message: /1000 bytes/ })
  const endless = sse(() => repeat(Buffer.alloc(65_536), Infinity), { ...png, interval: null, headers: png.headers })
  const { media, upstream } = await read(t, endless, { maxBytes: 1_000_000 })
  t.match(await fault(media), { statusCode: 400, message: /1000000 bytes/ })
  const closed = await upstream.requests[0]!.closed
  t.equal(closed.how, 'aborted')
  const exact = await read(t, bytes('x'.repeat(1_000), png), { maxBytes: 1_000 })
  t.equal((await exact.media)?.mimeType, 'image/png')
})

t.test('all links of a request share one limit', async t => {
  const upstream = await server(t, bytes('x'.repeat(600), png))
  const links = ['/a', '/b'].map(path => link(`http://127.0.0.1:${upstream.port}${path}`))
  const readMedia = createMedia({ allowPrivate: true, maxBytes: 1_000 })
  t.match(await fault(readMedia(links, never)), { statusCode: 400, message: /1000 bytes/ })
  t.equal((await readMedia(links.slice(0, 1), never)).size, 1, 'of that request')
})

t.test('a request may not have others ask for it without end', async t => {
  const upstream = await server(t, bytes('PNG', png))
  const links = Array.from({ length: 17 }, (_, index) => link(`http://127.0.0.1:${upstream.port}/${index}`))
  t.match(await fault(createMedia({ allowPrivate: true })(links, never)), { statusCode: 400, message: /16 files/ })
  t.equal(upstream.requests.length, 0)
})

// How long it may take

for (const [when, script] of Object.entries({
  'before its headers': silence(),
  'after its headers': silence({ ...bytes('PNG', png), limit: 0 }, 0),
  'in the middle': silence(bytes('x'.repeat(100), png), 50)
})) {
  t.test(`a host that is silent ${when} is given up, and its connection with it`, async t => {
    const { media, upstream } = await read(t, script, { timeout: 80 })
    t.match(await fault(media), { code: 'GATEWAY_INVALID_REQUEST', statusCode: 400, message: /80 ms/ })
    t.equal((await upstream.requests[0]!.closed).how, 'aborted')
  })

  t.test(`reading from a host that is silent ${when} ends with the signal`, async t => {
    const upstream = await server(t, script)
    const controller = new AbortController()
    const reason = new Error('gone')
    const links = [link(`http://127.0.0.1:${upstream.port}/`)]
    const reading = fault(createMedia({ allowPrivate: true })(links, controller.signal))
    const { closed } = await upstream.received()
    controller.abort(reason)
    t.equal(await reading, reason)
    t.equal((await closed).how, 'aborted')
    t.equal(getEventListeners(controller.signal, 'abort').length, 0)
  })
}

t.test('a look-up that does not end is given up', async t => {
  const resolve: Resolve = () => new Promise(() => {})
  const links = [link('http://slow.example/')]
  t.match(await fault(createMedia({ timeout: 30 }, resolve)(links, never)), { statusCode: 400, message: /30 ms/ })
  const controller = new AbortController()
  const reading = fault(createMedia({}, resolve)(links, controller.signal))
  const reason = new Error('gone')
  controller.abort(reason)
  t.equal(await reading, reason)
  t.equal(await fault(createMedia({}, resolve)(links, AbortSignal.abort(reason))), reason)
})

t.test('when one link fails the others are given up', async t => {
  const waiting = await server(t, silence())
  const wrong = await server(t, async () => {
    await waiting.received()
    return bytes('x', { status: 404 })
  })
  const links = [waiting, wrong].map(({ port }) => link(`http://127.0.0.1:${port}/`))
  t.match(await fault(createMedia({ allowPrivate: true })(links, never)), { message: /404/ })
  t.equal((await waiting.requests[0]!.closed).how, 'aborted')
})

t.test('no listener stays on the signal', async t => {
  const { signal } = new AbortController()
  const upstream = await server(t, bytes('PNG', png))
  await createMedia({ allowPrivate: true })([link(`http://127.0.0.1:${upstream.port}/`)], signal)
  t.equal(getEventListeners(signal, 'abort').length, 0)
})
