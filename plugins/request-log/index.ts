import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { isGatewayError } from '../../schemas/errors.ts'
import type { CallLevel, Inference, Outcome } from '../../schemas/gateway.ts'
import { callDetails, callMessage } from './line.ts'

/** One line of the log for each call, once it has ended, from its record: nothing else of it can get there. */
async function requestLog(app: FastifyInstance): Promise<void> {
  const { gateway } = app
  const { log } = gateway
  // A logger that is switched off has one function for everything, and does not know levels.
  if (log.isLevelEnabled === undefined && log.info === log.error) return

  /** One for all calls. */
  function write(outcome: Outcome, inference: Inference): void {
    const level = levelOf(outcome, inference)
    if (log.isLevelEnabled?.(level) === false) return
    const { record } = outcome
    if (log.logCall === undefined) log[level](callDetails(record), callMessage(record))
    else log.logCall(level, record)
  }

  gateway.intercept('observe', (inference, next) => {
    inference.onSettled(write)
    return next(inference)
  })
}

/**
 * `error`: the caller got a fault that is not its own. `warn`: a provider failed and another attempt answered, or somebody
 * has reached a limit, or the gateway was ended. `info`: everything else, also what callers do wrong, and callers that leave.
 */
function levelOf({ status, error }: Outcome, { expenses }: Inference): CallLevel {
  if (status === 'cancelled') return 'info'
  if (status === 'completed') {
    for (const expense of expenses) if (expense.status === 'failed') return 'warn'
    return 'info'
  }
  if (!isGatewayError(error)) return 'error'
  if (error.wire === 'shutting_down' || error.statusCode === 429) return 'warn'
  return error.statusCode >= 500 ? 'error' : 'info'
}

export default fp(requestLog, { fastify: '5.x', name: 'request-log', dependencies: ['gateway'] })
