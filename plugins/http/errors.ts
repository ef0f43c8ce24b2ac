import type { FastifyError, FastifySchemaValidationError } from 'fastify'
import {
  detail,
  type GatewayError,
  InternalError,
  InvalidRequest,
  isGatewayError,
  RequestTooLarge,
  UnsupportedMediaType
} from '../../schemas/errors.ts'

/** Whatever was thrown, as a fault of ours: Fastify's own keep their meaning, everything unknown becomes a 500 without words. */
export function toGatewayError(error: unknown, bodyLimit: number): GatewayError {
  if (isGatewayError(error)) return error
  if (!isFastifyError(error)) return new InternalError({ cause: error })
  if (error.validation?.[0]) return schemaFault(error.validation[0])
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new RequestTooLarge(bodyLimit)
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new UnsupportedMediaType()
    case 'FST_ERR_CTP_INVALID_JSON_BODY':
    case 'FST_ERR_CTP_EMPTY_JSON_BODY':
      return new InvalidRequest('The request body is not valid JSON.')
  }
  const status = error.statusCode
  if (status === undefined || status < 400 || status >= 500) return new InternalError({ cause: error })
  return detail(new InvalidRequest(error.message, { cause: error }), { statusCode: status })
}

function isFastifyError(error: unknown): error is FastifyError {
  return error instanceof Error
}

/** The first thing that the schema found, with the path as a JavaScript reader would write it: `messages[0].role`. */
function schemaFault(fault: FastifySchemaValidationError): GatewayError {
  const missing = fault.keyword === 'required' ? String(fault.params['missingProperty']) : null
  const path = pathOf(missing === null ? fault.instancePath : `${fault.instancePath}/${missing}`)
  const rule = missing === null ? ruleOf(fault) : 'is required'
  return detail(new InvalidRequest(path === '' ? `The request body ${rule}.` : `${path} ${rule}.`), {
    param: path === '' ? null : path
  })
}

function ruleOf(fault: FastifySchemaValidationError): string {
  const allowed = fault.params['allowedValues']
  if (Array.isArray(allowed)) return `must be one of ${allowed.join(', ')}`
  const kinds = fault.params['type']
  if (Array.isArray(kinds)) return `must be ${kinds.slice(0, -1).join(', ')} or ${kinds.at(-1)}`
  return fault.message ?? 'is not valid'
}

function pathOf(pointer: string): string {
  return pointer
    .split('/')
    .slice(1)
    .map(part => part.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce((path, part) => (/^\d+$/.test(part) ? `${path}[${part}]` : path === '' ? part : `${path}.${part}`), '')
}
