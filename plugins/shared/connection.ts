import { createHash } from 'node:crypto'
import { Redis } from 'ioredis'
import { SharedUnavailable } from '../../schemas/errors.ts'
import type { Log } from '../../schemas/gateway.ts'
import type { Script } from '../../schemas/shared.ts'

export interface ConnectionOptions {
  readonly url: string
  /** Milliseconds that an answer may take. */
  readonly timeout: number
  readonly prefix: string
  readonly log: Log
}

/** One connection with a deadline and a breaker. It reconnects by itself and keeps nothing to be sent later. */
export interface Connection {
  readonly prefix: string
  /** Null while commands are let through. */
  readonly down: string | null
  /** Sends within the deadline. @throws SharedUnavailable, at once while it is down */
  send<T>(command: (redis: Redis) => Promise<T>): Promise<T>
  /** @throws SharedUnavailable; what was sent may have been done all the same */
  run(script: Script, keys: readonly string[], args: ReadonlyArray<string | number>): Promise<unknown>
  /** What decides whether a connection is good, asked after each connect and while it is down. Rejects: not yet. */
  greet(greeting: (connection: Greeting) => Promise<void>): void
  /** Called when commands are let through no longer, and again. */
  onState(listener: (down: string | null) => void): void
  /** Connects; resolves with the first verdict, whatever it is. */
  start(): Promise<void>
  /** A second connection to the same Redis, for messages. */
  duplicate(): Redis
  close(): void
}

/** Past the breaker, for greetings. */
export interface Greeting {
  run(script: Script, keys: readonly string[], args: ReadonlyArray<string | number>): Promise<unknown>
  /** Names the run of the server: another one after each restart. Empty where it does not say. */
  server(): Promise<string>
  /** The policy by which the server drops keys when its memory is full; null: it drops none, or does not say. */
  evicting(): Promise<string | null>
}

/** So many failures in a row, and nobody is kept waiting any more. */
const failuresToOpen = 3
const probeInterval = 250
/** After so many probes without an answer the connection itself is given up. */
const probesToReconnect = 12
const firstVerdict = 2_000

export function createConnection({ url, timeout, prefix, log }: ConnectionOptions): Connection {
  const secrets = secretsOf(url)
  let closed = false
  const redis = new Redis(url, {
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    connectTimeout: 2_000,
    keepAlive: 10_000,
    protocol: 2,
    // After a failover: this is not the server to write to any more.
    reconnectOnError: error => error.message.startsWith('READONLY'),
    retryStrategy: times => (closed ? null : Math.min(200 * times, 1_000))
  })
  const hashes = new WeakMap<Script, string>()
  const listeners: Array<(down: string | null) => void> = []
  let greeting: (connection: Greeting) => Promise<void> = async () => {}
  let down: string | null = 'it is not connected yet'
  let failures = 0
  let lastError = 'the connection is closed'
  let ready = false
  let probing = false
  let silent = 0
  let timer: NodeJS.Timeout | null = null
  let verdict: (() => void) | null = null

  redis.on('error', error => {
    lastError = clean(error)
  })
  redis.on('ready', () => {
    ready = true
    silent = 0
    void probe()
  })
  redis.on('close', () => {
    ready = false
    fall(lastError)
  })

  /** One line in the log for each time it falls. */
  function fall(reason: string): void {
    verdict?.()
    if (closed) return
    timer ??= setInterval(() => void probe(), probeInterval).unref()
    if (down !== null && failures >= failuresToOpen) return
    failures = failuresToOpen
    down = reason
    log.warn({ reason }, 'Redis cannot be asked')
    for (const listener of listeners) listener(down)
  }

  function rise(): void {
    if (timer !== null) clearInterval(timer)
    timer = null
    failures = 0
    silent = 0
    if (down !== null) {
      down = null
      log.info({}, 'Redis answers')
      for (const listener of listeners) listener(null)
    }
    verdict?.()
  }

  /** Also without traffic: Redis is back as soon as it answers in time and the greeting has gone through. */
  async function probe(): Promise<void> {
    if (probing || closed || !ready || (down === null && failures < failuresToOpen)) return
    probing = true
    try {
      await within(redis.ping())
      await greeting({ run: runNow, server, evicting })
      if (ready) rise()
    } catch (error) {
      fall(clean(error))
      // A connection that was closed meanwhile would be opened again, and keep the process alive.
      if (!closed && ++silent % probesToReconnect === 0) redis.disconnect(true)
    } finally {
      probing = false
    }
  }

  async function server(): Promise<string> {
    return /^run_id:(\S+)/m.exec(await info('server'))?.[1] ?? ''
  }

  async function evicting(): Promise<string | null> {
    const memory = await info('memory')
    const most = /^maxmemory:(\d+)/m.exec(memory)?.[1] ?? '0'
    const policy = /^maxmemory_policy:(\S+)/m.exec(memory)?.[1] ?? 'noeviction'
    return most === '0' || policy === 'noeviction' ? null : policy
  }

  /** Empty where Redis does not let it be asked. */
  function info(section: string): Promise<string> {
    return within(redis.info(section)).catch(error => {
      if (isReply(error)) return ''
      throw error
    })
  }

  async function send<T>(command: (redis: Redis) => Promise<T>): Promise<T> {
    if (down !== null) throw new SharedUnavailable(down)
    try {
      const result = await within(command(redis))
      if (down === null) failures = 0
      return result
    } catch (error) {
      const reason = clean(error)
      // What Redis says no to is an answer.
      if (!isReply(error) && ++failures >= failuresToOpen && down === null) fall(reason)
      throw new SharedUnavailable(reason)
    }
  }

  async function within<T>(work: Promise<T>): Promise<T> {
    const { promise, reject } = Promise.withResolvers<never>()
    let grace: NodeJS.Immediate | undefined
    // When this process was busy for longer than that, its timers come before the answer that lies ready to be read.
    const deadline = setTimeout(() => {
      grace = setImmediate(() => reject(new Error(`there was no answer within ${timeout} ms`)))
    }, timeout)
    try {
      return await Promise.race([work, promise])
    } finally {
      clearTimeout(deadline)
      clearImmediate(grace)
    }
  }

  function call(script: Script, keys: readonly string[], args: ReadonlyArray<string | number>): Promise<unknown> {
    let hash = hashes.get(script)
    if (hash === undefined) hashes.set(script, (hash = createHash('sha1').update(script.lua).digest('hex')))
    const values = [...keys.map(key => prefix + key), ...args]
    return redis.evalsha(hash, keys.length, ...values).catch(error => {
      if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error
      return redis.eval(script.lua, keys.length, ...values)
    })
  }

  function runNow(script: Script, keys: readonly string[], args: ReadonlyArray<string | number>): Promise<unknown> {
    return within(call(script, keys, args))
  }

  /** Why, without what is secret, however it came into the message. */
  function clean(error: unknown): string {
    let text = error instanceof Error ? error.message : ''
    if (text === '' && error instanceof Error && 'code' in error) text = String(error.code)
    for (const secret of secrets) text = text.replaceAll(secret, '***')
    return text === '' ? 'the connection failed' : text.slice(0, 200)
  }

  return {
    prefix,
    get down() {
      return down
    },
    send,
    run: (script, keys, args) => send(() => call(script, keys, args)),
    greet: given => void (greeting = given),
    onState: listener => void listeners.push(listener),
    async start() {
      const { promise, resolve } = Promise.withResolvers<void>()
      const limit = setTimeout(resolve, firstVerdict)
      verdict = resolve
      failures = failuresToOpen - 1
      redis.connect().catch(error => fall(clean(error)))
      await promise
      verdict = null
      clearTimeout(limit)
    },
    duplicate: () => redis.duplicate({ enableOfflineQueue: true, maxRetriesPerRequest: null, lazyConnect: false }),
    close() {
      closed = true
      down = 'the connection is closed'
      if (timer !== null) clearInterval(timer)
      redis.disconnect()
    }
  }
}

function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

/** The user's password, as written and as it is sent. */
function secretsOf(url: string): string[] {
  try {
    const { password } = new URL(url)
    return password === '' ? [] : [url, password, decodeURIComponent(password)]
  } catch {
    return [url]
  }
}
