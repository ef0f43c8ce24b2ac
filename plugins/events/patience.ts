import type { Writable } from 'node:stream'

const patience = 10_000

/** Resolves when a reader has taken what waits, or is gone; false when it has done neither for long. */
export function patiently(stream: Writable): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const done = () => resolve(true)
  const timer = setTimeout(resolve, patience, false).unref()
  stream.on('drain', done)
  stream.on('close', done)
  if (stream.destroyed || !stream.writableNeedDrain) done()
  return promise.finally(() => {
    clearTimeout(timer)
    stream.off('drain', done)
    stream.off('close', done)
  })
}
