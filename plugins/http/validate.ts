import { Ajv, type ErrorObject } from 'ajv'
import type { FastifySchemaCompiler } from 'fastify'
import { detail, type GatewayError, InvalidRequest } from '../../schemas/errors.ts'

/**
 * Checks what the schemas of schemas/admin.ts describe, for the administrator's routes. A fault names the field and what it may be, never what was sent:
 * that may be a secret in the wrong place.
 */
export function validatorCompiler(): FastifySchemaCompiler<object> {
  const ajv = new Ajv({ strict: false, strictNumbers: true, verbose: true, addUsedSchema: false })
  return ({ schema, httpPart }) => {
    const check = ajv.compile(schema)
    return (data: unknown) => {
      // A body is no more than options where nothing in it is needed.
      const value = data ?? {}
      return check(value) ? { value } : { error: faultOf(check.errors?.[0], httpPart === 'body') }
    }
  }
}

function faultOf(error: ErrorObject | undefined, body: boolean): GatewayError {
  const path = pathOf(error)
  const place = path ?? (body ? 'The request body' : 'The query')
  return detail(new InvalidRequest(`${place} ${ruleOf(error)}.`), { param: path })
}

function ruleOf(error: ErrorObject | undefined): string {
  if (error?.keyword === 'required') return 'is required'
  if (error?.keyword === 'additionalProperties') return 'is not known here'
  const allowed: unknown = error?.parentSchema?.['allowed']
  if (typeof allowed === 'string') return `must be ${allowed}`
  return error?.message ?? 'is not valid'
}

/** As a JavaScript reader would write it: `allow_models[0]`; null for the whole. */
function pathOf(error: ErrorObject | undefined): string | null {
  if (error === undefined) return null
  const inner: unknown = error.params['missingProperty'] ?? error.params['additionalProperty']
  const parts = error.instancePath.split('/').slice(1).map(unescaped)
  if (typeof inner === 'string') parts.push(inner)
  if (parts.length === 0) return null
  return parts
    .map(part => part.slice(0, 128))
    .reduce((path, part) => (/^\d+$/.test(part) ? `${path}[${part}]` : path === '' ? part : `${path}.${part}`), '')
}

function unescaped(part: string): string {
  return part.replaceAll('~1', '/').replaceAll('~0', '~')
}
