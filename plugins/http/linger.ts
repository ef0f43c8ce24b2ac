import type { Socket } from 'node:net'

/** How long a client may go on sending a body that has been refused, in milliseconds. */
const patience = 1_000

/**
 * The answer closes the connection while the client still sends. To close with bytes unread would be a reset, which may
 * overtake the answer: so what comes is thrown away for a moment longer.
 */
export function linger(socket: Socket): void {
  socket.destroySoon = () => {
    socket.end()
    const timer = setTimeout(() => socket.destroy(), patience)
    socket.once('close', () => clearTimeout(timer))
  }
}
