import rateLimitPlugin, { normalizeIP } from '@fastify/rate-limit'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { detail, isGatewayError, RateLimitExceeded } from '../schemas/errors.ts'
import { createRecent } from '../schemas/recent.ts'

declare module '../schemas/gateway.ts' {
  interface Gateway {
    rateLimit?: RateLimit
  }
}

export interface RateLimit {
  /** Requests refused since the start of this process: too many of an address, too many with a wrong key. */
  readonly refused: { readonly address: number; readonly credentials: number }
}

export interface RateLimitOptions {
  /** Requests of one address in a window. Default 600. */
  max?: number
  /** Milliseconds. Default 60,000. */
  timeWindow?: number
  /** How many addresses are remembered; the ones seen least lately are forgotten first. Default 20,000. */
  addresses?: number
}

/** The part of `max` that may fail to authenticate before an address is shut out for the rest of the window. */
const failureShare = 0.1
/** An IPv6 address is one of a network, which its owner may walk through freely. */
const ipv6Subnet = 64

/** No address is written longer; what a proxy has passed on as one may be. */
const longestAddress = 64

interface Asking {
  /** Absent on a socket file. */
  readonly ip: string | undefined
}

/** @fastify/rate-limit by address, before authentication, on the gateway's own routes only. */
async function rateLimit(app: FastifyInstance, options: RateLimitOptions): Promise<void> {
  const { gateway } = app
  const max = options.max ?? 600
  const timeWindow = options.timeWindow ?? 60_000
  const addresses = options.addresses ?? 20_000
  const mostFailures = Math.max(1, Math.ceil(max * failureShare))
  /** The texts of addresses as they are counted: to read one of IPv6 takes longer than everything else here. */
  const networks = createRecent<string>(addresses)
  /** Addresses that are shut out, and until when. */
  const shut = createRecent<number>(addresses)
  const refused = { address: 0, credentials: 0 }
  let anyShut = false

  gateway.decorate('rateLimit', { refused })

  const networkOf = ({ ip = '' }: Asking): string => {
    const address = ip.slice(0, longestAddress)
    let network = networks.get(address)
    if (network === undefined) {
      network = networkIn(address)
      networks.set(address, network)
    }
    return network
  }

  // An instance of its own, which is never listened on: in ours the decorators of a host's own registration would be
  // found in the place of the plugin's, with the host's options and store.
  const own = Fastify()
  app.addHook('onClose', () => own.close())
  await own.register(rateLimitPlugin, { global: false, max, timeWindow, cache: addresses, keyGenerator: networkOf })
  await own.ready()
  const countRequest = own.createRateLimit()
  const countFailure = own.createRateLimit({ max: mostFailures })

  gateway.http.before(
    (request, _reply, done) => {
      if (!hasAddress(request)) return done()
      if (anyShut) {
        const wait = (shut.get(networkOf(request)) ?? 0) - Date.now()
        if (wait > 0) {
          refused.credentials++
          return done(refusal('Too many requests with a wrong or missing API key from this address.', wait))
        }
      }
      countRequest(request).then(
        counted => {
          if (counted.isAllowed || !counted.isExceeded) return done()
          refused.address++
          const reason = `Too many requests from this address: ${max} are allowed in ${timeWindow / 1_000} s.`
          done(refusal(reason, counted.ttl))
        },
        // The counter is in memory: what fails here is a fault of ours.
        done
      )
    },
    (request, _reply, error, done) => {
      if (!isGatewayError(error) || error.statusCode !== 401 || !hasAddress(request)) return done()
      countFailure(request).then(
        counted => {
          if (!counted.isAllowed && counted.remaining === 0) {
            anyShut = true
            shut.set(networkOf(request), Date.now() + counted.ttl)
          }
          done()
        },
        fault => {
          gateway.log.error({ err: fault }, 'a failed authentication could not be counted')
          done()
        }
      )
    }
  )
}

function hasAddress({ ip }: Asking): boolean {
  return ip !== undefined
}

function networkIn(address: string): string {
  try {
    return normalizeIP(address, ipv6Subnet)
  } catch {
    return address
  }
}

function refusal(reason: string, wait: number) {
  const seconds = Math.max(1, Math.ceil(wait / 1_000))
  return detail(new RateLimitExceeded(`${reason} Try again in ${seconds} s.`), {
    headers: { 'retry-after': String(seconds) }
  })
}

export default fp(rateLimit, { fastify: '5.x', name: 'rate-limit', dependencies: ['http'] })
