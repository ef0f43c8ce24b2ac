import type { Socket } from 'node:net'
import type { WebSocket } from 'ws'
import type { Ending, Sink } from './hub.ts'
import { patiently } from './patience.ts'

/** RFC 6455, 7.4.1, and 1013 of the IANA registry: try again later. */
const codes: Readonly<Record<Ending, number>> = { slow: 1013, closing: 1001, revoked: 1008 }
const unsupported = 1003
const lastWords = 5_000
/** Signs of life between two pings. */
const beatsBetweenPings = 2

/** Writes events into a socket that was upgraded. @param gone the connection has ended */
export function webSocketSink(peer: WebSocket, socket: Socket, gone: () => void): Sink {
  let timer: NodeJS.Timeout | undefined
  let beats = 0
  let isAlive = true
  peer.on('pong', () => {
    isAlive = true
  })
  // There is nothing to say here.
  peer.on('message', () => close(unsupported, 'nothing is read here'))
  // The reason is in the code that closes it.
  peer.on('error', () => {})
  peer.on('close', () => {
    clearTimeout(timer)
    gone()
  })

  function close(code: number, reason: string): void {
    peer.close(code, reason)
    timer ??= setTimeout(() => peer.terminate(), lastWords).unref()
  }

  return {
    form: 'websocket',
    get waiting() {
      return socket.writableLength
    },
    // Whole frames, the same bytes for everybody: ws would make the head of each frame again for each peer.
    write: bytes => {
      if (peer.readyState === peer.OPEN) socket.write(bytes)
    },
    beat() {
      if (++beats % beatsBetweenPings !== 0) return
      if (!isAlive) return peer.terminate()
      isAlive = false
      peer.ping()
    },
    drained: () => patiently(socket),
    end: reason => close(codes[reason], reason),
    cut: () => peer.terminate()
  }
}
