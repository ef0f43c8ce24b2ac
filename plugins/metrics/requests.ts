import type { ServerResponse } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Count, type Distribution, type Families, seconds } from './families.ts'
import { other } from './table.ts'

/** What a client that left before the end of its answer counts as, as in nginx. */
const left = 499
const labels = ['method', 'route', 'status']
/** Methods of requests that no route takes. */
const methods: ReadonlySet<string> = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

/** One method of one route: what became of its requests, by status. */
interface Route {
  readonly method: string
  readonly route: string
  readonly answers: Map<number, { readonly requests: Count; readonly duration: Distribution }>
}

/**
 * Counts what our routes answer: from the first hook to the end of the answer, which Node announces by `close` whether
 * it was taken over, refused or left. Fastify's onResponse does not run for a client that leaves in mid-stream.
 */
export function createRequests(families: Families): (request: FastifyRequest, reply: FastifyReply) => void {
  const requests = families.counter(
    'http_requests_total',
    'Requests of the routes of this gateway that have ended; 499: the client left before the end of its answer.',
    labels
  )
  const durations = families.histogram(
    'http_request_duration_seconds',
    'From the arrival of a request to the end of its answer.',
    seconds,
    labels
  )
  const routes = new Map<string, Map<string, Route>>()

  function routeOf({ routeOptions, method }: FastifyRequest): Route {
    const { url } = routeOptions
    // Nobody knows the path: it is the client's own.
    if (url === undefined) return known(other, methods.has(method) ? method : other)
    return known(url, method)
  }

  function known(route: string, method: string): Route {
    let byMethod = routes.get(route)
    if (byMethod === undefined) routes.set(route, (byMethod = new Map()))
    let found = byMethod.get(method)
    if (found === undefined) byMethod.set(method, (found = { method, route, answers: new Map() }))
    return found
  }

  function ended({ method, route, answers }: Route, raw: ServerResponse, started: number): void {
    const status = arrived(raw) ? raw.statusCode : left
    let answer = answers.get(status)
    if (answer === undefined) {
      const labels = { method, route, status: String(status) }
      answer = { requests: requests(labels), duration: durations(labels) }
      answers.set(status, answer)
    }
    answer.requests.value++
    answer.duration.observe((performance.now() - started) / 1_000)
  }

  return (request, { raw }) => {
    const started = performance.now()
    const route = routeOf(request)
    raw.on('close', () => ended(route, raw, started))
  }
}

/** An injected request has a socket that takes nothing, and is never destroyed. */
function arrived({ writableEnded, writableFinished, socket }: ServerResponse): boolean {
  return writableEnded && (writableFinished || socket?.destroyed !== true)
}
