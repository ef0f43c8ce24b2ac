import { randomBytes } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { namesOf } from '../../schemas/call-record.ts'
import type { ChatRequest } from '../../schemas/chat.ts'
import { Cancelled, ShuttingDown } from '../../schemas/errors.ts'
import { createEventBus } from '../../schemas/events.ts'
import type { Frames } from '../../schemas/frames.ts'
import {
  type Answer,
  type Caller,
  type CallerOptions,
  type Checked,
  type Completed,
  type Dispatch,
  type Gateway,
  type Kernel,
  type Layer,
  type Log,
  type Router,
  type Stage,
  stages
} from '../../schemas/gateway.ts'
import type { AttemptLayer, Send } from '../../schemas/provider.ts'
import { Call, type Host } from './call.ts'
import { createDependencies } from './dependencies.ts'
import { asError, whenSettled } from './ending.ts'
import type { Books } from './expense.ts'
import { Relay } from './relay.ts'
import { createRunning } from './running.ts'
import { tap } from './tap.ts'

declare module 'fastify' {
  interface FastifyInstance {
    gateway: Gateway
  }
}

export interface GatewayOptions {
  /** Milliseconds that running calls get to finish once the host closes. Default 10,000. */
  shutdownGrace?: number
  /** Default: the host's logger. */
  log?: Log
}

/** Milliseconds that those who listen to the end of calls get once the grace is over. */
const settlePatience = 10_000

/**
 * The kernel: an onion of named stages around each call. It owns no route and no socket; transports, in-process callers
 * and tests all enter through `complete` with a Caller.
 */
async function gatewayPlugin(app: FastifyInstance, options: GatewayOptions): Promise<void> {
  if (Object.hasOwn(app, 'gateway')) throw new Error('The plugin gateway is registered twice in one scope.')
  const { kernel, seal, drain } = createKernel(options.log ?? app.log)
  // Not `decorate`: a second gateway in one host inherits the first one's name and has to be able to shadow it.
  Object.defineProperty(app, 'gateway', { value: kernel, enumerable: true })
  const drains = drainsOf.get(app.server) ?? []
  drainsOf.set(app.server, drains)
  drains.push(() => drain(options.shutdownGrace ?? 10_000))
  app.addHook('onReady', async () => {
    seal()
    // What is added last closes first: before the server, the providers and the stores. A preClose hook would be cut
    // off, and the rest closed under running calls, after Fastify's pluginTimeout.
    app.addHook('onClose', async () => void (await Promise.all(drains.map(drain => drain()))))
  })
}

/** The kernels of one host drain together: one after another their graces would add up. */
const drainsOf = new WeakMap<FastifyInstance['server'], Array<() => Promise<void>>>()

function createKernel(log: Log) {
  const layers = new Map<Stage, Layer[]>(stages.map(stage => [stage, []]))
  const attemptLayers: AttemptLayer[] = []
  const dependencies = createDependencies(log)
  /** Names that a plugin has looked for in vain, and which plugin. */
  const missed = new Map<keyof Gateway, string>()
  const refusalListeners: Array<(error: unknown) => void> = []
  const running = createRunning<Call>()
  const newId = idGenerator()
  let router: Router | null = null
  const failed: Host['failed'] = (error, call) =>
    log.error({ ...namesOf(call), err: error }, 'a listener of a call failed')
  const books: Books = { cost: null, open: null, failed }
  let run: Dispatch | null = null
  let send: Send = attempt => attempt.target.provider.send(attempt)
  let host: Host | null = null
  let closing = false
  let drained: (() => void) | null = null
  let draining: Promise<void> | null = null

  function beforeReady(what: string): void {
    if (run !== null) throw new Error(`${what} is refused once the instance is ready: call it while plugins load.`)
  }

  const kernel: Kernel = {
    intercept(stage, layer) {
      beforeReady('gateway.intercept')
      const list = layers.get(stage)
      if (!list) throw new Error(`Unknown stage '${stage}': the stages are ${stages.join(', ')}.`)
      list.push(layer)
    },
    interceptAttempt(layer) {
      beforeReady('gateway.interceptAttempt')
      attemptLayers.push(layer)
    },
    onRefused(listener) {
      beforeReady('gateway.onRefused')
      refusalListeners.push(listener)
    },
    complete,
    caller: options => processCaller(newId(), options ?? {}),
    decorate(name, value) {
      if (Object.hasOwn(kernel, name)) throw new Error(`gateway.${name} is taken: another plugin has added it.`)
      const early = missed.get(name)
      if (early !== undefined) {
        throw new Error(
          `The plugin that adds gateway.${name} is registered after ${early}, which uses it: register it before.`
        )
      }
      Object.defineProperty(kernel, name, { value, enumerable: true })
    },
    optional(name, by) {
      if (!Object.hasOwn(kernel, name)) missed.set(name, by)
      return Reflect.get(kernel, name)
    },
    routeWith(given) {
      if (router !== null) throw new Error('gateway.routeWith: another plugin routes already.')
      router = given
    },
    accountWith(accountant) {
      beforeReady('gateway.accountWith')
      if (accountant.cost && books.cost)
        throw new Error('gateway.accountWith: another plugin knows the prices already.')
      if (accountant.open && books.open) throw new Error('gateway.accountWith: another plugin keeps the books already.')
      books.cost = accountant.cost ?? books.cost
      books.open = accountant.open ?? books.open
    },
    open(inference, target) {
      if (!(inference instanceof Call)) throw new Error('gateway.open: this is no call of this gateway.')
      return inference.open(target)
    },
    send: attempt => send(attempt),
    dependency: dependencies.add,
    readiness,
    events: createEventBus(error => log.error({ err: error }, 'a listener of events failed')),
    log,
    newId,
    get closing() {
      return closing
    },
    get running() {
      return running.size
    },
    calls: () => running
  }

  function complete(request: ChatRequest, caller: Caller): Promise<Completed> {
    if (run === null || host === null) return Promise.reject(new Error('The gateway is not ready: await app.ready().'))
    if (closing) return turnAway(new ShuttingDown())
    if (caller.signal.aborted) return turnAway(new Cancelled())
    let call: Call
    try {
      call = new Call(host, request, caller)
    } catch (error) {
      return turnAway(error)
    }
    running.add(call)
    const started = run
    return new Promise((resolve, reject) => {
      call.interrupt = reject
      const refused = (error: unknown) => refuse(call, error, reject)
      try {
        started(call).then(answer => deliver(call, answer, resolve, refused), refused)
      } catch (error) {
        refused(error)
      }
    })
  }

  function turnAway(error: unknown): Promise<never> {
    for (const listener of refusalListeners) {
      try {
        listener(error)
      } catch (fault) {
        log.error({ err: fault }, 'a listener of refusals failed')
      }
    }
    return Promise.reject(error)
  }

  /** Composes the onion. From here on a layer that nobody registered costs nothing. */
  function seal(): void {
    if (router === null) throw new Error('The gateway cannot route: register the plugin routing after gateway.')
    host = { router, books, ended, failed }
    const seals = layers.get('seal') ?? []
    if (seals.length > 0) seals.push(tap)
    const onion = stages.flatMap(stage => layers.get(stage) ?? [])
    run = onion.reduceRight<Dispatch>((next, layer) => inference => layer(inference, next), router.dispatch)
    send = attemptLayers.reduceRight<Send>((next, layer) => attempt => layer(attempt, next), send)
  }

  function ended(call: Call): void {
    running.remove(call)
    if (drained !== null && running.size === 0) drained()
  }

  /** Takes no more, waits for what runs, aborts what is left after the grace. */
  function drain(grace: number): Promise<void> {
    closing = true
    return (draining ??= untilEmpty(grace))
  }

  async function untilEmpty(grace: number): Promise<void> {
    if (running.size === 0) return
    const { promise, resolve } = Promise.withResolvers<void>()
    drained = resolve
    let timer = setTimeout(() => {
      log.warn({ running: running.size }, 'the grace is over: aborting what still runs')
      for (const call of running) call.abort(new ShuttingDown())
      timer = setTimeout(() => {
        log.error({ running: running.size }, 'listeners to the end of calls do not end: closing without them')
        resolve()
      }, settlePatience)
    }, grace)
    await promise
    clearTimeout(timer)
  }

  async function readiness(ping = false) {
    const own = { ok: !closing && run !== null, running: running.size, ms: 0 }
    const checks: Record<string, Checked> = { gateway: own, ...(await dependencies.ask(ping)) }
    return { ok: Object.values(checks).every(check => check.ok), checks }
  }

  return { kernel, seal, drain }
}

function deliver(
  call: Call,
  answer: Answer,
  resolve: (answer: Completed) => void,
  refused: (error: unknown) => void
): void {
  if (call.outcome !== null) {
    // Ended from outside meanwhile: the caller was told, the answer has no reader.
    if (answer?.stream) void discard(answer.frames)
    return
  }
  let completed: Completed
  try {
    completed = finished(call, answer)
  } catch (error) {
    // A layer answered with nothing, or with frames that nobody can read.
    refused(error)
    return
  }
  call.interrupt = null
  if (completed.stream) {
    // Its caller has left, and it goes on without one.
    if (call.departed) call.relay?.drain()
    resolve(completed)
  } else whenSettled(call.settle('completed', null), () => resolve(completed))
}

function finished(call: Call, answer: Answer): Completed {
  const { facts } = call
  if (answer.stream) {
    const frames = new Relay(call, answer.frames)
    call.delivered()
    return { stream: true, frames, facts }
  }
  call.answered(answer)
  return {
    stream: false,
    raw: answer.raw,
    get body() {
      return answer.body
    },
    facts
  }
}

async function discard(frames: AsyncIterable<Frames>): Promise<void> {
  try {
    await frames[Symbol.asyncIterator]().return?.()
  } catch {
    // Nobody waits for it any more.
  }
}

function refuse(call: Call, error: unknown, reject: (error: unknown) => void): void {
  if (call.outcome !== null) return
  call.interrupt = null
  whenSettled(call.settle('failed', asError(error)), () => reject(error))
}

function processCaller(id: string, options: CallerOptions): Caller {
  return {
    id,
    principal: { tenant: options.tenant ?? 'public', key: null, kind: 'process', scopes: ['chat'] },
    signal: options.signal ?? new AbortController().signal,
    trace: options.trace,
    deadline: options.deadline,
    idempotencyKey: options.idempotencyKey,
    origin: { lane: 'process' }
  }
}

/** Ids that are unique across processes and cheap: a random prefix drawn once, then a counter. */
function idGenerator(): () => string {
  const prefix = `req_${randomBytes(9).toString('base64url').replace(/[-_]/g, '0')}`
  let count = 0
  return () => prefix + (count++).toString(36).padStart(6, '0')
}

export default fp(gatewayPlugin, { fastify: '5.x', name: 'gateway' })
