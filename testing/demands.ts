import type { Provider } from '../schemas/provider.ts'
import type { Received } from './upstream/server.ts'
import type { Speech, Started, Vendor } from './vendor.ts'

/** Something that providers have to do, as a sentence. */
export interface Demand {
  readonly title: string
  applies(started: Started): boolean
  test(started: Started): Promise<void>
}

/** A demand on every provider. One with an upstream is answered with the usual speech, as often as it asks. */
export function ofAll(title: string, test: (provider: Provider) => Promise<void>): Demand {
  return {
    title,
    applies: () => true,
    async test({ provider, vendor }) {
      vendor?.upstream.script(request => (wantsStream(request) ? vendor.stream(speech) : vendor.whole(speech)))
      await test(provider)
    }
  }
}

/** A demand on providers with an upstream, or on those of them whose vendor can do something. */
export function ofVendors(
  title: string,
  test: (provider: Provider, vendor: Vendor, started: Started) => Promise<void>,
  applies: (vendor: Vendor, started: Started) => unknown = () => true
): Demand {
  return {
    title,
    applies: started => started.vendor !== undefined && Boolean(applies(started.vendor, started)),
    async test(started) {
      if (started.vendor !== undefined) await test(started.provider, started.vendor, started)
    }
  }
}

/** Vendors are told in the body, or by the path. */
function wantsStream({ json, url }: Received): boolean {
  return json.stream === true || /stream/i.test(url)
}

export const speech: Speech = {
  text: ['Hello', ' Zürich,', ' 東京', ' 🙂', ' "quoted"\n'],
  finish: 'stop',
  inputTokens: 9,
  outputTokens: 5
}

/** `finish_reason` has no other values. */
export const reasons: ReadonlySet<unknown> = new Set([
  'stop',
  'length',
  'tool_calls',
  'content_filter',
  'function_call'
])
