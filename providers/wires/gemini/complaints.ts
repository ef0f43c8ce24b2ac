import { detail, type GatewayError, InvalidRequest } from '../../../schemas/errors.ts'

export function invalid(message: string, param: string): GatewayError {
  return detail(new InvalidRequest(message), { param })
}

/** Names that come from the client, short enough for a header. */
export function listed(names: readonly string[]): string {
  const shown = names.filter(name => /^[\w$]{1,40}$/.test(name)).slice(0, 10)
  return shown.length === names.length ? shown.join(', ') : [...shown, 'other fields'].join(', ')
}
