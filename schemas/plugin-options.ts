import { type Static, Type } from '@sinclair/typebox'
import { BaseUrl, Count, Credential, Flag, Secret, Url, Words } from './atoms.ts'
import { Duration, Size, Timeout } from './duration.ts'
import { eventTypePattern } from './events.ts'
import { closed, type Filled, named, oneOf, preset, text, toggle } from './shape.ts'
import { privateKeyOf, publicKeyOf } from './signing-keys.ts'

// `plugins` of the configuration. Each is false, true or an object; in the settings false or an object with every default.

/** Nothing to set yet. */
const Nothing = Type.Unsafe<Record<string, never>>(closed({}))
/** Options that go to somebody else's plugin as they are. */
const Foreign = named('^', 'any other name', Type.Unknown())

/** The public keys of `jwksUri` decide who signed; secrets shared with an issuer are not among the algorithms. */
const Jwt = closed({
  issuer: Words,
  audience: Words,
  jwksUri: Url,
  algorithms: preset(
    Type.Array(oneOf('RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'), {
      minItems: 1
    }),
    ['RS256']
  ),
  /** The claim that names the tenant. */
  tenantClaim: preset(Words, 'tenant'),
  /** The claim that lists scopes, as an array or a text with spaces; without it a token may only call models. */
  scopeClaim: preset(Words, 'scope')
})

const IceUrl = text('^(stuns?|turns?):\\S+$', 'a stun:, stuns:, turn: or turns: URL')
const IceServer = closed(
  {
    urls: Type.Transform(Type.Union([IceUrl, Type.Array(IceUrl, { minItems: 1 })]))
      .Decode(urls => (typeof urls === 'string' ? [urls] : urls))
      .Encode(urls => urls),
    username: Type.Optional(Secret),
    credential: Type.Optional(Secret)
  },
  { hidden: true }
)

/** Of receipts: the key that signs them, and those that did before, whose public halves are still published. */
const Receipts = closed({
  privateKey: signingKey('an Ed25519 private key, as PEM or as a JWK', privateKeyOf),
  previousKeys: preset(Type.Array(signingKey('an Ed25519 public key, as PEM or as a JWK', publicKeyOf)), [])
})

export const PluginOptions = closed({
  /** An object holds options of @fastify/helmet. */
  helmet: toggle(Foreign, true),
  /** An object holds options of @fastify/sensible. */
  sensible: toggle(Foreign, true),
  /** POST /v1/chat/completions. */
  chatCompletions: toggle(Nothing, true),
  /** POST /proxy/:model; needs chatCompletions. */
  proxy: toggle(Nothing, true),
  /** GET /v1/models, /v1/models/:id and /models. */
  models: toggle(Nothing, true),
  /** GET /health, /ready and /api/health. */
  health: toggle(Nothing, true),
  /** By address, before authentication. */
  rateLimit: toggle(closed({ max: preset(Count, 600), timeWindow: preset(Timeout, '60s') }), true),
  auth: toggle(
    closed({
      /** `auto`: `public` for local callers while nobody has a key. A name: always that tenant. */
      anonymousTenant: preset(Type.Union([Type.Literal(false), Words], { allowed: 'auto, a tenant or false' }), 'auto'),
      /** Absent: one is generated. */
      adminToken: Type.Optional(Credential),
      jwt: preset(Type.Union([Type.Literal(false), Jwt], { allowed: 'false or an object' }), false)
    }),
    true
  ),
  /** What is asked of Redis, where `redis` names one. */
  shared: toggle(
    closed({
      onRedisDown: preset(oneOf('deny', 'local-share'), 'deny'),
      /** How long an answer may take. */
      timeout: preset(Timeout, '50ms'),
      /** A process that is silent for so long counts as dead: its holds end, its open calls are closed. */
      lease: preset(Timeout, '10s')
    }),
    true
  ),
  /** `createOnDemand`: an admin or a JWT that names an unknown tenant makes it, with the defaults. */
  tenants: toggle(closed({ createOnDemand: preset(Flag, false) }), true),
  /** Requests and tokens per minute and calls at once, per key and tenant. */
  limits: toggle(Nothing, true),
  /**
   * `table`: look up models without a price of their own in the built-in table. `extras`: what becomes of requests for what
   * costs more than its tokens, such as `service_tier: priority` or `web_search_options`.
   */
  pricing: toggle(closed({ table: preset(Flag, true), extras: preset(oneOf('deny', 'allow'), 'deny') }), true),
  /** `Idempotency-Key`: how long an answer is kept, and how large it may be. */
  idempotency: toggle(closed({ ttl: preset(Timeout, '24h'), maxAnswer: preset(Size, '4mb') }), true),
  /** One line of the log for each call. */
  requestLog: toggle(Nothing, true),
  /** GET /api/traces: the last 200 calls. */
  traces: toggle(Nothing, true),
  /** GET /api/stats: counters. */
  stats: toggle(Nothing, true),
  /** /api/tenants, /budget and what else is the administrator's. */
  admin: toggle(Nothing, true),
  /** `unpriced`: what happens to a model without a known price. */
  budgets: toggle(closed({ unpriced: preset(oneOf('deny', 'allow'), 'deny') }), true),
  ledger: toggle(
    closed({
      durability: preset(oneOf('process', 'store', 'power'), 'process'),
      onClientGone: preset(oneOf('abort', 'drain'), 'abort'),
      retention: preset(Duration, '90d'),
      /** Where journals are written; absent: beside the SQLite file, else ./data/journal. */
      journal: Type.Optional(Words)
    }),
    true
  ),
  cache: toggle(Nothing, false),
  structuredOutput: toggle(Nothing, true),
  opa: toggle(
    closed({
      url: BaseUrl,
      path: preset(Words, 'v1/data/rtt/allow'),
      timeout: preset(Timeout, '500ms'),
      onError: preset(oneOf('deny', 'allow'), 'deny')
    }),
    false
  ),
  otel: toggle(
    closed({
      /** Of the collector. Absent: this machine, at the port of the protocol: 4317 or 4318. */
      endpoint: Type.Optional(BaseUrl),
      /** `/v1/traces` and `/v1/metrics` are added to the endpoint of `http/protobuf`. */
      protocol: preset(oneOf('grpc', 'http/protobuf'), 'grpc'),
      serviceName: preset(Words, 'fastify-model-gateway'),
      /** Histograms of provider calls. */
      metrics: preset(Flag, true),
      /** Prompts and answers in the traces. */
      captureContent: preset(Flag, false),
      /** Characters of each of them. */
      maxContentLength: preset(Count, 4096),
      /** Names of older dashboards, too. */
      legacyAttributes: preset(Flag, false),
      /** Server spans by @opentelemetry/instrumentation-http in place of ours; docs/decisions/0018. */
      instrumentation: preset(Flag, false)
    }),
    false
  ),
  /**
   * `public`: GET /metrics needs no admin token. `legacyNames`: names of predecessors as well. `maxModels`, `maxTenants`: how
   * many become labels; the rest is `other`.
   */
  metrics: toggle(
    closed({
      public: preset(Flag, false),
      legacyNames: preset(Type.Array(oneOf('titan')), []),
      maxModels: preset(Count, 100),
      maxTenants: preset(Count, 100)
    }),
    true
  ),
  /** GET /events, and the stream in Redis where `redis` names one. */
  events: toggle(
    closed({
      /** The key of the stream; false: nothing is written to Redis. */
      stream: preset(Type.Union([Type.Literal(false), Words], { allowed: 'a key of Redis or false' }), 'agent.events'),
      /** About how many events the stream keeps. */
      maxLength: preset(Count, 10_000),
      /** Without Redis: how many are kept for subscribers that come back. */
      kept: preset(Count, 1_000),
      /** What may wait for a subscriber that does not read. */
      buffer: preset(Size, '1mb'),
      /** The most at a time. */
      subscribers: preset(Count, 2_000),
      /** Types of others that `?type=` may name, or their beginnings. */
      types: preset(Type.Array(text(eventTypePattern, 'a type of event such as agent.step, or agent.*')), [])
    }),
    true
  ),
  signing: toggle(
    closed({
      secret: Secret,
      /** What the header `x-gateway-key-id` says; absent: derived from the secret. */
      keyId: Type.Optional(text('^[\\x21-\\x7e]{1,64}$', '1 to 64 visible ASCII characters')),
      /** Secrets that signed before: `gateway.signing.verify` still takes their signatures. */
      previous: preset(Type.Array(Secret), []),
      receipts: preset(Type.Union([Type.Literal(false), Receipts], { allowed: 'false or an object' }), false)
    }),
    false
  ),
  insights: toggle(Nothing, false),
  realtime: toggle(closed({ iceServers: preset(Type.Array(IceServer, { hidden: true }), []) }), false)
})

/** `plugins` as it is written, and with its defaults. */
export type PluginOptions = Static<typeof PluginOptions>
export type PluginSettings = Filled<typeof PluginOptions>

/** Stays the text that it is, once it has been tried. */
function signingKey(allowed: string, read: (text: string) => unknown) {
  return Type.Transform(Type.String({ minLength: 1, hidden: true, allowed }))
    .Decode(written => {
      read(written)
      return written
    })
    .Encode(written => written)
}
