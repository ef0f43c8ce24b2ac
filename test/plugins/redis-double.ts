import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { SharedUnavailable } from '../../schemas/errors.ts'
import type { Shared } from '../../schemas/shared.ts'

/** `gateway.shared` over a real Redis, without deadline and breaker: a test says when it is down. */
export interface SharedDouble extends Shared {
  down: string | null
  onRedisDown: 'deny' | 'local-share'
  instances: string[]
  generation: string | null
  /** By how many seconds the clock of Redis is ahead, for scripts that ask it. */
  ahead: number
  /** Scripts that have run. */
  readonly runs: ReadonlyArray<{ keys: readonly string[]; args: ReadonlyArray<string | number> }>
  readonly redis: Redis
  /** Goes down or comes back, and tells whoever listens. */
  become(down: string | null): void
}

export function sharedOver(t: Test, url: string, instance: string, instances: string[] = [instance]): SharedDouble {
  const redis = new Redis(url)
  t.teardown(() => redis.disconnect())
  const subscriber = new Redis(url)
  t.teardown(() => subscriber.disconnect())
  const prefix = 'gw:'
  const runs: Array<{ keys: readonly string[]; args: ReadonlyArray<string | number> }> = []
  const states: Array<(state: { down: string | null; lost: boolean }) => void> = []
  const up = () => {
    if (double.down !== null) throw new SharedUnavailable(double.down)
  }
  const double: SharedDouble = {
    instance,
    prefix,
    onRedisDown: 'deny',
    down: null,
    ahead: 0,
    generation: 'one',
    instances,
    get processes() {
      return Math.max(1, double.instances.length)
    },
    redis,
    runs,
    async run({ lua }, keys, args) {
      up()
      const clock = `{ redis.call('TIME')[1] + ${double.ahead}, redis.call('TIME')[2] }`
      const script = lua.replaceAll("redis.call('TIME')", clock)
      const answer = await redis.eval(script, keys.length, ...keys.map(key => prefix + key), ...args)
      runs.push({ keys, args })
      return answer
    },
    async get(key) {
      up()
      return redis.getBuffer(prefix + key)
    },
    async set(key, value, ttl, onlyNew) {
      up()
      const bytes = Buffer.from(value)
      const answer = onlyNew
        ? await redis.set(prefix + key, bytes, 'PX', ttl, 'NX')
        : await redis.set(prefix + key, bytes, 'PX', ttl)
      return answer === 'OK'
    },
    async delete(key) {
      up()
      await redis.del(prefix + key)
    },
    publish(channel, message) {
      if (double.down === null) void redis.publish(prefix + channel, `${instance} ${message}`)
    },
    subscribe(channel, listener) {
      void subscriber.subscribe(prefix + channel)
      subscriber.on('message', (on, text) => {
        const [from, ...rest] = text.split(' ')
        if (on === prefix + channel && from !== instance) listener(rest.join(' '))
      })
    },
    onState: listener => void states.push(listener),
    onDeath() {},
    become(down) {
      double.down = down
      for (const listener of states) listener({ down, lost: false })
    }
  }
  return double
}
