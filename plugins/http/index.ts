import { Ajv } from 'ajv'
import type { FastifyInstance, FastifyReply, FastifyRequest, onErrorHookHandler, onRequestHookHandler } from 'fastify'
import fp from 'fastify-plugin'
import { isTheirs, wordsOf } from '../../schemas/call-record.ts'
import { errorBody, type GatewayError, ResourceNotFound, withoutKeys } from '../../schemas/errors.ts'
import type { Caller, Principal, TraceParent } from '../../schemas/gateway.ts'
import { newTraceId, type Served, traceIdOf } from '../../schemas/trace.ts'
import { toGatewayError } from './errors.ts'
import { type Guard, guard, principalKey, principalOf } from './guard.ts'
import { jsonParser, serialize } from './json.ts'
import { linger } from './linger.ts'
import { cutKey, cutting, mending } from './long.ts'
import { validatorCompiler } from './validate.ts'

const idKey = Symbol('gateway.id')
const traceKey = Symbol('gateway.trace')
const servedKey = Symbol('gateway.served')

declare module 'fastify' {
  interface FastifyRequest {
    [idKey]: string | null
    [traceKey]: string | null
    [servedKey]: Served | null
  }
}

declare module '../../schemas/gateway.ts' {
  interface Gateway {
    http: Http
  }
}

/** What every route of ours has in common, for transports to take inside their own scope. */
export interface Http {
  /**
   * Gives a transport's own scope our error body, our parsers, a validator that changes nothing and, unless `open`,
   * authentication before the body is read. With `scope` only a credential that has it is let in: nobody without one,
   * whatever anonymous callers may do elsewhere. `fixed: false` leaves the fixed headers of answers to the transport; errors
   * carry them anyway. Nothing reaches the scopes around it.
   */
  prepare(scope: FastifyInstance, options: Prepare): void
  /**
   * The administrator's routes of a plugin, in a scope of their own: a credential with the scope `admin`, of a tenant that
   * is switched on; bodies and queries checked as schemas/admin.ts says, unknown fields refused; answers that nobody keeps.
   * Without authentication there are none: there is no telling who the administrator is.
   */
  admin(app: FastifyInstance, routes: (scope: FastifyInstance) => void): void
  /**
   * Runs a hook before authentication, on every route of ours that is not `open`; and one for each fault that such a route
   * throws. While plugins load, before the transports.
   */
  before(hook: onRequestHookHandler, failed?: onErrorHookHandler): void
  /**
   * Shows every request to a route of ours before anything else is done with it, and to an unknown path that is ours.
   * While plugins load, before the transports.
   */
  watch(watcher: (request: FastifyRequest, reply: FastifyReply) => void): void
  /** Adds headers that every answer of ours carries. While plugins load. */
  fix(headers: Readonly<Record<string, string>>): void
  /** Those headers as name, value, name, value: for a transport that writes its answers itself. */
  readonly fixed: readonly string[]
  /** Answers an unknown path in our form. A host may set it as its own not-found handler. */
  notFound(request: FastifyRequest, reply: FastifyReply): FastifyReply
  /**
   * Makes every unknown path of a scope ours: a 404 that reads no body, and our error body for what Fastify finds before
   * it. For scopes that hold nothing but the gateway.
   */
  catchAll(scope: FastifyInstance): void
  /** Who sent a request, once its scope has let it in. */
  principal(request: FastifyRequest): Principal
  /** The caller behind a request. `tenant` is what the body names; the signal is the transport's. */
  caller(request: FastifyRequest, signal: AbortSignal, tenant?: string | null): Caller & { readonly traceId: string }
  /** Logs a fault at the level that it deserves. */
  report(error: unknown, fault: GatewayError, asker: Pick<Required<Caller>, 'id' | 'traceId'>): void
  /** The id that the answer carries as `x-request-id`. */
  id(request: FastifyRequest): string
  /** The trace that it belongs to; the answer carries it as `x-trace-id`. */
  traceId(request: FastifyRequest): string
  /** The most bytes of a body. */
  readonly bodyLimit: number
}

export interface Prepare extends Guard {
  /** No authentication. */
  open: boolean
  fixed?: boolean
}

export interface HttpOptions {
  /** Bytes. Default 10 MiB. */
  bodyLimit?: number
}

async function httpPlugin(app: FastifyInstance, options: HttpOptions): Promise<void> {
  const { gateway } = app
  const bodyLimit = options.bodyLimit ?? 10 * 1024 * 1024
  const fixed: Record<string, string> = {}
  const fixedList: string[] = []
  const watchers: Array<(request: FastifyRequest, reply: FastifyReply) => void> = []
  const befores: Array<{ hook: onRequestHookHandler; failed: onErrorHookHandler | undefined }> = []
  // Nothing is coerced, filled in or removed: what passes is what was sent.
  const ajv = new Ajv({ coerceTypes: false, useDefaults: false, removeAdditional: false, strict: false })

  gateway.decorate('http', {
    bodyLimit,
    fixed: fixedList,
    watch: watcher => void watchers.push(watcher),
    before: (hook, failed) => void befores.push({ hook, failed }),
    fix(headers) {
      Object.assign(fixed, headers)
      fixedList.splice(0, fixedList.length, ...Object.entries(fixed).flat())
    },
    id: idOf,
    traceId,
    report,
    prepare,
    admin,
    notFound,
    catchAll(scope) {
      scope.setReplySerializer(serialize)
      scope.removeAllContentTypeParsers()
      scope.setErrorHandler(fail)
      scope.setNotFoundHandler(notFound)
    },
    principal: principalOf,
    caller(request, signal, tenant) {
      const { headers } = request
      const principal = principalOf(request)
      return {
        id: idOf(request),
        principal: tenant === null || tenant === undefined ? principal : actFor(principal, tenant),
        signal,
        trace: traceOf(headers),
        traceId: traceId(request),
        served: request[servedKey] ?? undefined,
        deadline: deadlineOf(headers['x-stainless-timeout']),
        idempotencyKey: single(headers['idempotency-key']),
        origin: { lane: 'http', address: request.ip, method: request.method, path: request.url, headers }
      }
    }
  })

  function idOf(request: FastifyRequest): string {
    request[idKey] ??= gateway.newId()
    return request[idKey]
  }

  function traceId(request: FastifyRequest): string {
    request[traceKey] ??=
      request[servedKey]?.traceId ??
      gateway.tracing?.traceId() ??
      traceIdOf(single(request.headers['traceparent'])) ??
      newTraceId()
    return request[traceKey]
  }

  function actFor(principal: Principal, tenant: string): Principal {
    return gateway.actFor ? gateway.actFor(principal, tenant) : { ...principal, tenant }
  }

  function notFound(request: FastifyRequest, reply: FastifyReply): FastifyReply {
    for (const watch of watchers) watch(request, reply)
    const error = new ResourceNotFound(request.method, request.url.split('?', 1)[0]!)
    return reply
      .code(404)
      .headers(fixed)
      .headers(error.headers)
      .header('x-request-id', idOf(request))
      .header('x-trace-id', traceId(request))
      .header('content-type', 'application/json; charset=utf-8')
      .serializer(serialize)
      .send(errorBody(error))
  }

  /** What callers do wrong is theirs to see; what fails here or upstream is the operator's, except that we are closing. */
  function report(error: unknown, fault: GatewayError, asker: Parameters<Http['report']>[2]): void {
    const target = fault.target && { target: withoutKeys(fault.target) }
    const details = { requestId: asker.id, traceId: asker.traceId, code: fault.code, ...target }
    const message = wordsOf(fault)
    if (fault.wire === 'shutting_down') gateway.log.info(details, message)
    else if (fault.statusCode < 500) gateway.log.debug(details, withoutKeys(fault.message))
    else gateway.log.error(isTheirs(fault) ? details : { err: error, ...details }, message)
  }

  function fail(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const fault = toGatewayError(error, bodyLimit)
    const id = idOf(request)
    report(error, fault, { id, traceId: traceId(request) })
    if (fault.wire === 'request_too_large') linger(request.raw.socket)
    return reply
      .code(fault.statusCode)
      .headers(fixed)
      .headers(fault.headers)
      .header('x-request-id', id)
      .header('x-trace-id', traceId(request))
      .header('content-type', 'application/json; charset=utf-8')
      .send(errorBody(fault))
  }

  function admin(app: FastifyInstance, routes: (scope: FastifyInstance) => void): void {
    if (gateway.optional('authenticate', 'the routes of the administrator') === undefined) return
    app.register(async scope => {
      // Before authentication, so that refusals carry it too.
      scope.addHook('onRequest', (_request, reply, done) => {
        reply.header('cache-control', 'no-store')
        done()
      })
      prepare(scope, { open: false, scope: 'admin' })
      scope.setValidatorCompiler(validatorCompiler())
      routes(scope)
    })
  }

  function prepare(scope: FastifyInstance, options: Prepare): void {
    scope.decorateRequest(principalKey, null)
    scope.decorateRequest(idKey, null)
    scope.decorateRequest(traceKey, null)
    scope.decorateRequest(servedKey, null)
    scope.decorateRequest(cutKey, null)
    for (const watch of watchers) {
      scope.addHook('onRequest', (request, reply, done) => {
        watch(request, reply)
        done()
      })
    }
    scope.setValidatorCompiler(({ schema }) => ajv.compile(schema))
    scope.setErrorHandler(fail)
    // A host's own serializer would wrap our answers.
    scope.setReplySerializer(serialize)
    scope.removeAllContentTypeParsers()
    const json = mending(jsonParser(scope.getDefaultJsonParser('error', 'error')))
    scope.addHook('preParsing', cutting(bodyLimit))
    for (const type of ['application/json', 'text/plain']) {
      scope.addContentTypeParser(type, { parseAs: 'string', bodyLimit }, json)
    }
    const { tracing } = gateway
    // Not of what anybody may ask: probes would be most of what is traced.
    if (tracing && !options.open) {
      scope.addHook('onRequest', (request, reply, done) => {
        request[servedKey] = tracing.serve(request.raw, reply.raw, request.routeOptions.url)
        done()
      })
    }
    if (options.fixed !== false) {
      scope.addHook('onRequest', (request, reply, done) => {
        reply.headers(fixed).header('x-request-id', idOf(request)).header('x-trace-id', traceId(request))
        done()
      })
    }
    if (options.open) return
    for (const { hook, failed } of befores) {
      scope.addHook('onRequest', hook)
      if (failed) scope.addHook('onError', failed)
    }
    guard(scope, gateway, options)
  }
}

function traceOf(headers: FastifyRequest['headers']): TraceParent | undefined {
  const traceparent = headers['traceparent']
  if (typeof traceparent !== 'string') return undefined
  return { traceparent, tracestate: single(headers['tracestate']) }
}

/** The SDK's own time limit, in whole seconds there and in milliseconds here. */
function deadlineOf(header: string | string[] | undefined): number | undefined {
  const seconds = Number(header)
  return header !== undefined && Number.isFinite(seconds) && seconds > 0 ? seconds * 1_000 : undefined
}

function single(header: string | string[] | undefined): string | undefined {
  return typeof header === 'string' ? header : undefined
}

export default fp(httpPlugin, { fastify: '5.x', name: 'http', dependencies: ['gateway'] })
