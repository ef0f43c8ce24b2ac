import type { Redis } from 'ioredis'
import type { Connection } from './connection.ts'

/** Messages between processes, on a connection of their own. A message that cannot be sent now is never sent. */
export function createMessages(connection: Connection, instance: string, missed: () => void) {
  const listeners = new Map<string, Array<(message: string) => void>>()
  let redis: Redis | null = null

  function connect(): Redis {
    const made = connection.duplicate()
    let known = false
    // Its reasons are those of the other connection, which tells them.
    made.on('error', () => {})
    made.on('ready', () => {
      if (known) missed()
      known = true
    })
    made.on('message', (channel: string, text: string) => {
      const end = text.indexOf(' ')
      if (text.slice(0, end) === instance) return
      for (const listener of listeners.get(channel) ?? []) listener(text.slice(end + 1))
    })
    return made
  }

  return {
    publish(channel: string, message: string): void {
      connection.send(redis => redis.publish(connection.prefix + channel, `${instance} ${message}`)).catch(() => {})
    },
    subscribe(channel: string, listener: (message: string) => void): void {
      redis ??= connect()
      const name = connection.prefix + channel
      const known = listeners.get(name)
      if (known !== undefined) known.push(listener)
      else {
        listeners.set(name, [listener])
        redis.subscribe(name).catch(() => {})
      }
    },
    close(): void {
      redis?.disconnect()
    }
  }
}
