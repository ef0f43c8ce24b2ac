import { type Static, Type } from '@sinclair/typebox'
import { BaseUrl, Count, Credential, Flag, providerName, Secret, Words } from './atoms.ts'
import { Delay, Size } from './duration.ts'
import { closed, type Filled, named, oneOf, preset, text, toggle } from './shape.ts'

// `providers` of the configuration. What a provider is at run time stands in provider.ts.

const hopByHop = [
  'connection',
  'expect',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade'
]
const framing = [...hopByHop, 'accept-encoding', 'content-length', 'host']
/** Headers that carry one. */
export const credentials = ['api-key', 'authorization', 'cookie', 'x-api-key', 'x-goog-api-key']

const headerName = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
const except = (names: readonly string[]) => `^(?!(?:${names.map(anyCase).join('|')})$)${headerName}$`

/** A header of the client that is passed on to the provider. In the settings its name is in lower case. */
const ForwardedHeader = Type.Transform(
  text(
    except([...framing, ...credentials]),
    'a header name; never a credential, cookie, host, content-length, accept-encoding or hop-by-hop header'
  )
)
  .Decode(name => name.toLowerCase())
  .Encode(name => name)

const Headers = named(
  except(framing),
  'a header name; never host, content-length, accept-encoding or a hop-by-hop header',
  text('^[\\t\\x20-\\x7e\\x80-\\xff]*$', 'a text without control characters', { hidden: true }),
  { hidden: true }
)

/** What every provider may say beside its `type` and `baseUrl`. */
const common = {
  /** Several keys are a pool. */
  apiKeys: preset(Type.Array(Credential, { hidden: true }), []),
  /** Sent with every call. */
  headers: preset(Headers, {}),
  enabled: preset(Flag, true),
  forwardHeaders: preset(Type.Array(ForwardedHeader), []),
  /** Ask for usage in streams; for upstreams that do not know `stream_options`, false. */
  streamUsage: preset(Flag, true),
  /** The most sockets to the provider's origin. */
  connections: preset(Count, 1024),
  /** The largest event of a stream. */
  maxEvent: preset(Size, '8mb')
}

/** For vendors that take only bytes: links to images and PDFs are read here. */
const fetchMedia = toggle(
  closed({
    /** Of all that one request points at. */
    maxBytes: preset(Size, '10mb'),
    /** Addresses of this machine and of private networks, too. */
    allowPrivate: preset(Flag, false)
  }),
  false
)

const OpenAICompatible = closed({
  type: Type.Literal('openai-compatible'),
  baseUrl: BaseUrl,
  /** Whose server it is, for its peculiarities. Absent: OpenRouter's by its host, else nobody's in particular. */
  vendor: Type.Optional(oneOf('openrouter', 'litellm', 'vllm', 'ollama')),
  ...common
})

/** A value that travels in a header. */
const Account = text('^[\\x21-\\x7e]+$', 'printable ASCII without white space')

const OpenAI = closed({
  type: Type.Literal('openai'),
  baseUrl: preset(BaseUrl, 'https://api.openai.com/v1'),
  organization: Type.Optional(Account),
  project: Type.Optional(Account),
  ...common
})

const Anthropic = closed({
  type: Type.Literal('anthropic'),
  baseUrl: preset(BaseUrl, 'https://api.anthropic.com'),
  /** Of the API. From 2026-10-21 on it takes no sampling parameters. */
  version: preset(text('^\\d{4}-\\d{2}-\\d{2}$', 'a day such as 2023-06-01'), '2023-06-01'),
  /** Features of the API to switch on. */
  beta: preset(Type.Array(text('^[\\x21-\\x2b\\x2d-\\x7e]+$', 'a name without commas and white space')), []),
  ...common
})

const LlamaCpp = closed({ type: Type.Literal('llamacpp'), baseUrl: BaseUrl, ...common })

const AzureOpenAI = closed({
  type: Type.Literal('azure-openai'),
  baseUrl: BaseUrl,
  /** The URLs of deployments. Absent: the v1 API. */
  apiVersion: Type.Optional(text('^\\d{4}-\\d{2}-\\d{2}(-preview)?$', 'a date, as 2024-10-21 or 2025-04-01-preview')),
  /** How `apiKeys` travel: tokens of Entra as `bearer`. */
  auth: preset(oneOf('api-key', 'bearer'), 'api-key'),
  /** An application of Microsoft Entra, in place of `apiKeys`. */
  entra: Type.Optional(
    closed({
      tenantId: text('^([0-9A-Za-z][0-9A-Za-z.-]*|env:\\w+)$', 'the id of a directory, or its domain'),
      clientId: Words,
      clientSecret: Secret,
      /** Other clouds have their own, and their own scope. */
      authority: preset(BaseUrl, 'https://login.microsoftonline.com'),
      scope: preset(Words, 'https://cognitiveservices.azure.com/.default')
    })
  ),
  ...common
})

const Gemini = closed({
  type: Type.Literal('gemini'),
  baseUrl: preset(BaseUrl, 'https://generativelanguage.googleapis.com'),
  safetySettings: preset(Type.Array(closed({ category: Words, threshold: Words })), []),
  fetchMedia,
  ...common
})

const Vertex = closed({
  type: Type.Literal('vertex'),
  /** Absent with `apiKeys`: the express mode. */
  project: Type.Optional(Words),
  /** A region, `us`, `eu` or `global`. */
  location: preset(Words, 'global'),
  /** Absent: the location's own address. */
  baseUrl: Type.Optional(BaseUrl),
  /** A service account: the path of its file or its JSON. Absent: the machine's own identity. */
  credentials: Type.Optional(Type.String({ minLength: 1, hidden: true })),
  /** Where tokens are asked for in place of Google, for tests. */
  tokenUrl: Type.Optional(BaseUrl),
  safetySettings: preset(Type.Array(closed({ category: Words, threshold: Words })), []),
  fetchMedia,
  ...common
})

/** Answers by itself, for trying out and for tests. */
const Echo = closed({
  type: Type.Literal('echo'),
  /** Words of an answer. */
  words: preset(Count, 16),
  /** Before the first token. */
  delay: preset(Delay, '0ms'),
  /** Between chunks. */
  interval: preset(Delay, '0ms'),
  chunkWords: preset(Count, 1),
  baseUrl: Type.Optional(BaseUrl),
  ...common
})

/** Registered by a plugin of yours, under the name of this entry: gateway.providers.register(provider). */
const Custom = closed({ type: Type.Literal('custom'), baseUrl: Type.Optional(BaseUrl), ...common })

export const ProviderOptions = Type.Union([
  OpenAICompatible,
  OpenAI,
  Anthropic,
  LlamaCpp,
  AzureOpenAI,
  Gemini,
  Vertex,
  Echo,
  Custom
])
export const Providers = named(providerName, 'letters, digits, ".", "_" and "-", at most 64', ProviderOptions)

/** Those of a configuration that names none. */
export const defaultProviders: Record<string, ProviderOptions> = { echo: { type: 'echo' } }

/** One entry of `providers` as it is written. */
export type ProviderOptions = Static<typeof ProviderOptions>
/** The same with its defaults. */
export type ProviderSettings = Filled<typeof ProviderOptions>

// Patterns of JSON Schema have no flags.
function anyCase(name: string): string {
  return name.replace(/[a-z]/g, letter => `[${letter}${letter.toUpperCase()}]`)
}
