import type { FastifyInstance } from 'fastify'
import { ReloadQuery, TargetsQuery } from '../../schemas/admin.ts'
import type { ReloadAnswer, TargetAnswer } from '../../schemas/admin-answers.ts'
import { detail, InvalidRequest, withoutKeys } from '../../schemas/errors.ts'
import { ConfigError } from '../../schemas/faults.ts'
import type { Gateway } from '../../schemas/gateway.ts'
import type { Admin } from './index.ts'

/** GET /api/targets, POST /api/routing/reload. */
export function targetRoutes(scope: FastifyInstance, { gateway, actor }: Admin): void {
  scope.get<{ Querystring: TargetsQuery }>(
    '/api/targets',
    { schema: { querystring: TargetsQuery } },
    async ({ query }): Promise<{ data: TargetAnswer[] }> => {
      const { provider, model } = query
      const wanted = gateway.targets.list().filter(target => {
        return (provider ?? target.provider) === target.provider && (model ?? target.model) === target.model
      })
      return { data: wanted.map(shown) }
    }
  )

  scope.post<{ Querystring: ReloadQuery }>(
    '/api/routing/reload',
    { schema: { querystring: ReloadQuery } },
    async (request): Promise<ReloadAnswer> => {
      const { reload } = gateway
      if (reload === undefined) throw notReadable()
      try {
        const { changes, restart, ...rest } = await reload({
          dryRun: request.query.dryRun === 'true',
          actor: actor(request)
        })
        return { changes: [...changes], restart: [...restart], ...rest }
      } catch (error) {
        throw error instanceof ConfigError ? new InvalidRequest(error.message) : error
      }
    }
  )
}

/** A vendor's words may repeat what a caller has sent. */
function shown(target: ReturnType<Gateway['targets']['list']>[number]): TargetAnswer {
  const { last_error: error, keys } = target
  return { ...target, keys: [...keys], last_error: error && { ...error, message: withoutKeys(error.message) } }
}

function notReadable() {
  const words =
    'This gateway cannot read its routing table again: the app that it is part of has given it as an object. That app ' +
    'changes it by app.gateway.models.replace(table).'
  return detail(new InvalidRequest(words), { statusCode: 409 })
}
