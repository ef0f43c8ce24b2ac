// Preloaded into a contender that would listen on every address: here nothing leaves this machine.
import { Server } from 'node:net'

const { listen } = Server.prototype
Server.prototype.listen = function (port, ...rest) {
  return listen.call(
    this,
    ...(typeof port === 'number' && typeof rest[0] !== 'string' ? [port, '127.0.0.1'] : [port]),
    ...rest
  )
}
