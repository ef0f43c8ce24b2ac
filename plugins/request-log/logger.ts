import { hostname } from 'node:os'
import { type Level, type Logger, pino } from 'pino'
import type { Log } from '../../schemas/gateway.ts'
import { logDestination } from './destination.ts'
import { callLine, callSummary } from './line.ts'

export interface LoggerOptions {
  readonly level: Level | 'silent'
  /** An open file, as destination.ts wants it; null: stdout, pretty, for a person at a terminal. */
  readonly fd: number | null
}

/** The log of a server, which writes the lines of calls itself. */
export async function createLogger({ level, fd }: LoggerOptions): Promise<Logger & Log> {
  if (fd === null) {
    const { default: pretty } = await import('pino-pretty')
    const logger = pino({ level }, pretty({ ignore: 'pid,hostname', translateTime: 'HH:MM:ss.l' }))
    return withCalls(logger, (level, record) =>
      logger[level]({ requestId: record.id, traceId: record.traceId }, callSummary(record))
    )
  }
  const recovered = (lines: number) => logger.warn({ lines }, 'lines of the log are lost: they could not be written')
  const sink = logDestination({ fd, recovered })
  process.once('exit', sink.end)
  const logger = pino({ level }, sink)
  const bindings = `,"pid":${process.pid},"hostname":${JSON.stringify(hostname())}`
  return withCalls(logger, (level, record) => sink.write(callLine(level, record, bindings)))
}

function withCalls(logger: Logger, logCall: NonNullable<Log['logCall']>): Logger & Log {
  return Object.assign(logger, { logCall })
}
