import { lookup } from 'node:dns/promises'
import { BlockList, isIP, type LookupFunction } from 'node:net'
import { Client } from 'undici'
import { detail, type GatewayError, InvalidRequest, isGatewayError } from '../schemas/errors.ts'

/** Bytes for a vendor that takes nothing else. */
export interface Media {
  readonly mimeType: string
  /** Base64. */
  readonly data: string
}

/** Something that a request points at. */
export interface Link {
  readonly url: string
  readonly kind: 'image' | 'pdf'
  /** Where it stands in the request. */
  readonly param: string
}

export interface MediaOptions {
  /** The most bytes of all that one request points at. Default 10 MiB. */
  maxBytes?: number
  /** Whether addresses of this machine and of private networks may be read. Default false. */
  allowPrivate?: boolean
  /** Milliseconds for all links of a request together. Default 10,000. */
  timeout?: number
}

export interface Address {
  readonly address: string
  readonly family: number
}

/** All addresses of a host. */
export type Resolve = (host: string) => Promise<readonly Address[]>

/**
 * Reads what the links of a request lead to, by their URL. No redirects, no compression, no address but those that were
 * looked at before: a name that changes its address in between gains nothing.
 * @throws InvalidRequest with `param`, or the reason of the signal
 */
export type ReadMedia = (links: readonly Link[], signal: AbortSignal) => Promise<Map<string, Media>>

const mostLinks = 16
const kinds = {
  image: { type: /^image\/[\w.+-]+$/, name: 'an image', accept: 'image/*' },
  pdf: { type: /^application\/pdf$/, name: 'a PDF', accept: 'application/pdf' }
}

// What is not the open internet, by the registries of special addresses that IANA keeps. Of the sixth version only what
// is handed out at all is open: that leaves out loopback, private, link-local, multicast and mapped addresses.
const closed4 = blockList('ipv4', [
  ...['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24'],
  ...['192.0.2.0/24', '192.31.196.0/24', '192.52.193.0/24', '192.88.99.0/24', '192.168.0.0/16', '192.175.48.0/24'],
  ...['198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/4', '240.0.0.0/4']
])
const open6 = blockList('ipv6', ['2000::/3'])
const closed6 = blockList('ipv6', ['2001::/23', '2001:db8::/32', '2002::/16', '2620:4f:8000::/48', '3fff::/20'])

function blockList(family: 'ipv4' | 'ipv6', networks: readonly string[]): BlockList {
  const list = new BlockList()
  for (const network of networks) {
    const [address = '', bits] = network.split('/')
    list.addSubnet(address, Number(bits), family)
  }
  return list
}

/** Whether an address belongs to the open internet. */
export function isPublic(address: string): boolean {
  const family = isIP(address)
  if (family === 4) return !closed4.check(address, 'ipv4')
  return family === 6 && !address.includes('%') && open6.check(address, 'ipv6') && !closed6.check(address, 'ipv6')
}

export function createMedia(options: MediaOptions = {}, resolve: Resolve = everyAddress): ReadMedia {
  const { maxBytes = 10 * 1024 * 1024, allowPrivate = false, timeout = 10_000 } = options

  return async function readMedia(links, signal) {
    signal.throwIfAborted()
    const ended = new AbortController()
    const stop = () => ended.abort(signal.reason)
    signal.addEventListener('abort', stop)
    const late = new Error(`not read within ${timeout} ms`)
    const timer = setTimeout(() => ended.abort(late), timeout)
    const budget = { left: maxBytes }
    const wanted = new Map(links.map(link => [link.url, link]))
    try {
      if (wanted.size > mostLinks) throw refused(links[0]!, `A request may point at ${mostLinks} files at most.`)
      const read = async (link: Link) => [link.url, await one(link, budget, ended.signal)] as const
      return new Map(await Promise.all([...wanted.values()].map(read)))
    } catch (error) {
      signal.throwIfAborted()
      if (error === late) throw refused(links[0]!, `What this request points at was not read within ${timeout} ms.`)
      throw error
    } finally {
      // What is still being read is no longer wanted.
      ended.abort()
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
    }
  }

  async function one(link: Link, budget: { left: number }, signal: AbortSignal): Promise<Media> {
    const url = addressOf(link)
    const client = new Client(url.origin, {
      connect: { lookup: pinned(await allowed(url, link, signal)), timeout },
      allowH2: false,
      maxHeaderSize: 16_384
    })
    try {
      return await read(client, url, link, budget, signal)
    } catch (cause) {
      signal.throwIfAborted()
      throw isGatewayError(cause) ? cause : refused(link, 'What this link leads to cannot be read.', cause)
    } finally {
      await client.destroy()
    }
  }

  async function read(client: Client, url: URL, link: Link, budget: { left: number }, signal: AbortSignal) {
    const { type, name, accept } = kinds[link.kind]
    const { statusCode, headers, body } = await client.request({
      path: url.pathname + url.search,
      method: 'GET',
      headers: { accept, 'accept-encoding': 'identity' },
      signal
    })
    if (statusCode >= 300 && statusCode < 400)
      throw refused(link, 'This link leads to another one, which is not followed.')
    if (statusCode !== 200) throw refused(link, `This link is answered with status ${statusCode}.`)
    const mimeType = String(headers['content-type'] ?? '')
      .replace(/\s*;.*$/s, '')
      .toLowerCase()
    const encoding = headers['content-encoding'] ?? 'identity'
    if (!type.test(mimeType) || encoding !== 'identity') throw refused(link, `This link does not lead to ${name}.`)
    if (Number(headers['content-length'] ?? 0) > budget.left) throw tooLarge(link)
    // Made base64 as it comes, so that the bytes themselves are never there as a whole.
    let data = ''
    let rest: Buffer = Buffer.alloc(0)
    for await (const chunk of body) {
      budget.left -= chunk.length
      if (budget.left < 0) throw tooLarge(link)
      const bytes: Buffer = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
      const whole = bytes.length - (bytes.length % 3)
      data += bytes.toString('base64', 0, whole)
      rest = Buffer.from(bytes.subarray(whole))
    }
    data += rest.toString('base64')
    if (data === '') throw refused(link, 'This link leads to nothing.')
    return { mimeType, data }
  }

  async function allowed(url: URL, link: Link, signal: AbortSignal): Promise<readonly Address[]> {
    const host = url.hostname.replace(/^\[|\]$/g, '')
    const family = isIP(host)
    const addresses = family > 0 ? [{ address: host, family }] : await looked(host, link, signal)
    // A name that leads to both sides is up to no good.
    if (!allowPrivate && !addresses.every(({ address }) => isPublic(address))) {
      throw refused(link, 'This link does not lead to the open internet.')
    }
    return addresses
  }

  async function looked(host: string, link: Link, signal: AbortSignal): Promise<readonly Address[]> {
    const left = Promise.withResolvers<never>()
    const leave = () => left.reject(signal.reason)
    signal.addEventListener('abort', leave)
    try {
      const addresses = await Promise.race([resolve(host), left.promise])
      if (addresses.length > 0) return addresses
    } catch {
      signal.throwIfAborted()
    } finally {
      signal.removeEventListener('abort', leave)
    }
    throw refused(link, 'The host of this link is not known.')
  }

  function tooLarge(link: Link): GatewayError {
    return refused(link, `What a request points at may have ${maxBytes} bytes at most.`)
  }
}

function everyAddress(host: string): Promise<readonly Address[]> {
  return lookup(host, { all: true })
}

function addressOf(link: Link): URL {
  const url = URL.parse(link.url)
  if (url === null || !/^https?:$/.test(url.protocol) || url.username !== '' || url.password !== '') {
    throw refused(link, 'This is not an http(s) URL without credentials.')
  }
  return url
}

/** Connects to these addresses and no other, whatever the host name says by now. */
function pinned(addresses: readonly Address[]): LookupFunction {
  return (_host, { all }, callback) => {
    const [first] = addresses
    if (all) callback(null, [...addresses])
    else callback(null, first?.address ?? '', first?.family)
  }
}

function refused({ param }: Link, message: string, cause?: unknown): GatewayError {
  return detail(new InvalidRequest(message, { cause }), { param })
}
