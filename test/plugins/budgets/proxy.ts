import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'

/** A TCP proxy in front of a server that can be made slow: answers are held back by `delay` milliseconds. */
export interface SlowProxy {
  readonly port: number
  delay: number
}

export async function slowProxy(t: Test, target: number): Promise<SlowProxy> {
  const sockets = new Set<Socket>()
  const server = createServer(client => {
    const upstream = connect(target, '127.0.0.1')
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        sockets.delete(socket)
        client.destroy()
        upstream.destroy()
      })
    }
    client.pipe(upstream)
    upstream.on('data', data => {
      if (proxy.delay === 0) client.write(data)
      else setTimeout(() => client.writable && client.write(data), proxy.delay)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('There is no port.')
  const proxy: SlowProxy = { port: address.port, delay: 0 }
  return proxy
}
