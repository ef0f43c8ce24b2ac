import type { Attributes } from '@opentelemetry/api'
import { withoutKeys } from '../../schemas/errors.ts'
import type { Target } from '../../schemas/gateway.ts'
import type { Provider } from '../../schemas/provider.ts'
import { attributes as is, operation, providerHosts, providerNames } from './names.ts'

/** What spans and metrics say of where a provider call goes. */
export interface Place {
  readonly provider: string
  readonly address: string | undefined
  readonly port: number | undefined
}

const places = new WeakMap<Provider, Place>()

export function placeOf(provider: Provider): Place {
  const known = places.get(provider)
  if (known !== undefined) return known
  const url = provider.url !== undefined && URL.canParse(provider.url) ? new URL(provider.url) : null
  const place = {
    provider: nameOf(provider, url?.hostname),
    // The brackets of an IPv6 address are the URL's.
    address: url?.hostname.replace(/^\[(.*)\]$/, '$1'),
    port: url === null ? undefined : Number(url.port || (url.protocol === 'https:' ? 443 : 80))
  }
  places.set(provider, place)
  return place
}

/** What samplers see of a provider call; the convention wants these from the start. */
export function beginningOf({ provider, model }: Pick<Target, 'provider' | 'model'>): Attributes {
  const { provider: name, address, port } = placeOf(provider)
  const begin: Attributes = { [is.operation]: operation, [is.provider]: name, [is.requestModel]: withoutKeys(model) }
  if (address !== undefined) begin[is.serverAddress] = address
  if (port !== undefined) begin[is.serverPort] = port
  return begin
}

/** Of several servers with one wire the host says whose it is; else it is called what the operator calls it. */
function nameOf({ name, vendor }: Provider, host: string | undefined): string {
  if (vendor !== undefined && vendor !== 'openai-compatible') return providerNames[vendor] ?? vendor
  const found = providerHosts.find(([end]) => host === end || host?.endsWith(`.${end}`))
  return found?.[1] ?? name
}
