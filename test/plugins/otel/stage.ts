import type { Test } from 'tap'
import type { Span } from '../../otlp/messages.ts'
import { type Protocol, type Receiver, type ReceiverOptions, startReceiver } from '../../otlp/receiver.ts'
import { run } from '../../server-process.ts'
import { startUpstream, type Upstream } from '../../upstream.ts'

// A whole server between two scripted upstreams and a collector, told of it as an operator tells it: by the environment.

/** What must be in no export. */
export const secrets = {
  firstKey: 'sk-first-6b1f0c9d27e84a35',
  secondKey: 'sk-second-d41c7a90b2e35f68',
  clientKey: 'gw-shop-client-90ac4417b2de',
  poorKey: 'gw-poor-client-51fe0c33a97b',
  adminToken: 'admin-7f3e5a1c9b8d2046'
}

/** So little that long prompts are not refused for their price. */
const price = { input: 0.01, output: 0.02 }
const first = { provider: 'first', model: 'first-model', price }
const second = { provider: 'second', model: 'second-model', price }
const claude = { provider: 'claude', model: 'claude-model', price }

/** Names say what happens to calls of them. */
export const models = {
  plain: { targets: [first], retries: 0 },
  other: { targets: [second], retries: 0 },
  translated: { targets: [claude], retries: 0 },
  twice: { targets: [first], retries: 1 },
  chain: { strategy: 'priority', targets: [first, second], retries: 0 },
  hedged: { strategy: 'priority', targets: [first, second], retries: 0, hedge: { after: '50ms' } },
  impatient: { targets: [first], retries: 0, timeouts: { idle: '200ms', firstToken: '200ms', headers: '200ms' } }
}

export interface StageOptions extends ReceiverOptions {
  readonly protocol?: Protocol
  /** Options of the plugin. */
  readonly otel?: object
  readonly env?: Readonly<Record<string, string>>
  /** In place of a collector that is started here. */
  readonly collector?: Receiver['env']
  readonly config?: object
}

export interface Stage {
  readonly first: Upstream
  readonly second: Upstream
  readonly receiver: Receiver
  readonly gateway: ReturnType<typeof run>
  readonly url: string
  /** One call of chat completions; the key of the tenant `shop` unless there are headers. */
  ask(body: object, options?: { headers?: Record<string, string>; signal?: AbortSignal; path?: string }): Promise<Asked>
  /** The spans of the trace that an answer names. */
  spans(asked: Asked, enough: number): Promise<Span[]>
}

export interface Asked {
  readonly status: number
  readonly traceId: string
  readonly headers: Headers
  /** Read to its end. */
  text(): Promise<string>
  readonly body: Response['body']
}

export const messages = [{ role: 'user' as const, content: 'Hello' }]

export async function stage(t: Test, options: StageOptions = {}): Promise<Stage> {
  const first = await startUpstream()
  const second = await startUpstream()
  const receiver = await startReceiver(options.protocol ?? 'grpc', options)
  t.teardown(() => Promise.all([first.close(), second.close(), receiver.close()]))
  const config = {
    providers: {
      first: {
        type: 'openai-compatible',
        baseUrl: first.url,
        apiKeys: [secrets.firstKey],
        forwardHeaders: ['traceparent', 'tracestate', 'baggage', 'x-forwarded-by-wish']
      },
      claude: { type: 'anthropic', baseUrl: second.url.replace(/\/v1$/, ''), apiKeys: [secrets.secondKey] },
      second: { type: 'openai-compatible', baseUrl: second.url, apiKeys: [secrets.secondKey] }
    },
    models,
    tenants: {
      shop: { keys: [secrets.clientKey] },
      poor: { keys: [secrets.poorKey], budget: { usd: 0.000001, period: 'total' } }
    },
    plugins: { rateLimit: false, ...(options.otel && { otel: options.otel }) },
    ...options.config
  }
  const gateway = run(t, {
    files: { 'gateway.yaml': config },
    env: {
      ADMIN_TOKEN: secrets.adminToken,
      OTEL_BSP_SCHEDULE_DELAY: '20',
      OTEL_METRIC_EXPORT_INTERVAL: '250',
      OTEL_METRIC_EXPORT_TIMEOUT: '250',
      ...(options.collector ?? receiver.env),
      ...options.env
    }
  })
  const url = await gateway.url()

  async function ask(
    body: object,
    { headers, signal, path = '/v1/chat/completions' }: Parameters<Stage['ask']>[1] = {}
  ) {
    const response = await fetch(url + path, {
      method: 'POST',
      headers: { authorization: `Bearer ${secrets.clientKey}`, 'content-type': 'application/json', ...headers },
      body: JSON.stringify({ messages, ...body }),
      signal
    })
    return {
      status: response.status,
      traceId: response.headers.get('x-trace-id') ?? 'no x-trace-id',
      headers: response.headers,
      text: () => response.text(),
      body: response.body
    }
  }

  return {
    first,
    second,
    receiver,
    gateway,
    url,
    ask,
    spans: ({ traceId }, enough) => receiver.trace(traceId, enough)
  }
}
