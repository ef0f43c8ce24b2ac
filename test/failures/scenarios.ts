import {
  bytes,
  chunks,
  close,
  completion,
  failure,
  heartbeats,
  json,
  type Reply,
  redirect,
  repeat,
  reset,
  silence,
  sse
} from '../upstream.ts'

// What an upstream does in each row of the table, by the name of the row.

/** Where a provider is that answers nothing by HTTP. */
export type Nowhere = 'refused' | 'unknown' | 'untrusted' | 'mute'

export interface Scenario {
  readonly whole?: Reply
  readonly stream?: Reply
  /** Nothing arrives at the scripted server. */
  readonly nowhere?: Nowhere
  /** The call as a whole has little time. */
  readonly hurried?: boolean
}

export const usage = { prompt_tokens: 100, completion_tokens: 50, total_tokens: 150 }
/** The code of every error body. */
export const theirs = 'code_of_the_vendor'

const answer = json(completion({ usage }))
const said = chunks(['one', ' two', ' three'])
const [role, one] = said as [object, object]
const begun = '{"id":"x","choices":[{"message":{"content":"'
const broke = { message: 'It broke.', type: 'server_error' }

const status = (code: number, headers: Record<string, string> = {}) =>
  either(failure(code, { message: 'The vendor says so.', code: theirs }, { headers }))

/** The scripts by the names of their rows. `decoy`: where nobody is to be sent. */
export function scenarios(decoy: string): Readonly<Record<string, Scenario>> {
  return {
    'connection refused': { nowhere: 'refused' },
    'DNS name unknown': { nowhere: 'unknown' },
    'TLS certificate not trusted': { nowhere: 'untrusted' },
    'hang while connecting': { nowhere: 'mute' },
    'reset before headers': either(reset()),
    'reset after headers': { whole: reset(answer, 20), stream: reset(sse(said), JSON.stringify(role).length) },
    'reset after headers: after the first token': { stream: reset(sse([role, one], { done: false })) },
    'hang before headers': either(silence()),
    'hang after headers': { whole: silence(answer, 20), stream: silence('headers') },
    'hang after headers: after a role and empty deltas': { stream: silence(sse([role, role, role], { done: false })) },
    'hang after headers: after the first token': { stream: silence(sse([role, one], { done: false })) },
    'heartbeat-only': {
      whole: dripping(' \n'),
      stream: heartbeats()
    },
    'heartbeat-only: after the first token': { stream: sse(withHeartbeats, { interval: 10 }) },
    'never done': { whole: dripping('word ', begun), stream: sse(endless, { interval: 10 }), hurried: true },
    'garbage body': {
      whole: bytes(garbage, { headers: { 'content-type': 'application/json' } }),
      stream: sse(garbage)
    },
    'garbage body: JSON that is no completion': { whole: json({ ok: true }) },
    'truncated JSON': {
      whole: bytes(JSON.stringify(completion()).slice(0, -20), { headers: { 'content-type': 'application/json' } }),
      stream: sse(`data: ${JSON.stringify(one).slice(0, -20)}`)
    },
    'truncated stream': { whole: close(answer, 20), stream: close(sse([role], { done: false })) },
    'truncated stream: after the first token': { stream: close(sse([role, one], { done: false })) },
    'truncated stream: it ends in good order': { stream: sse([role, one], { done: false }) },
    'wrong content type': either(
      bytes('<html><body>It works!</body></html>', { headers: { 'content-type': 'text/html' } })
    ),
    'wrong content type: JSON for a stream': { stream: answer },
    'wrong content type: JSON as text': {
      whole: json(completion({ usage }), { headers: { 'content-type': 'text/plain' } })
    },
    '400': status(400),
    '400: too long for the model': either(
      failure(400, { message: 'The vendor says so.', code: 'context_length_exceeded' })
    ),
    '401': status(401),
    '402': status(402),
    '403': status(403),
    '404': status(404),
    '408': status(408),
    '409': status(409),
    '413': status(413),
    '422': status(422),
    '429': status(429),
    '429: with retry-after 2': status(429, { 'retry-after': '2' }),
    '429: with retry-after 60': status(429, { 'retry-after': '60' }),
    '500': status(500),
    '500: with x-should-retry false': status(500, { 'x-should-retry': 'false' }),
    '502': status(502),
    '503': status(503),
    '503: with retry-after 2': status(503, { 'retry-after': '2' }),
    '503: with retry-after 60': status(503, { 'retry-after': '60' }),
    '504': status(504),
    '529': status(529),
    '200 with error inside': { whole: json({ error: broke }), stream: sse([{ error: broke }]) },
    '200 with error inside: it says 429': {
      whole: json({ error: { ...broke, code: 429 } }),
      stream: sse([{ error: { ...broke, code: 429 } }])
    },
    '200 with error inside: after the first token': { stream: sse([role, one, { error: broke }]) },
    redirect: either(redirect(decoy))
  }
}

/** What the fallback answers. */
export function good(stream: boolean): Reply {
  return stream ? sse([...said, { ...one, choices: [], usage }]) : answer
}

function either(reply: Reply): Scenario {
  return { whole: reply, stream: reply }
}

const garbage = Buffer.from(Array.from({ length: 2_000 }, (_, index) => (index * 7_919) % 251))

/** The same without end, after a beginning: some send white space to keep a connection open. */
function dripping(piece: string, beginning = ''): Reply {
  const pieces = function* () {
    if (beginning !== '') yield beginning
    yield* repeat(Buffer.from(piece), Number.POSITIVE_INFINITY)
  }
  return sse(pieces, { interval: 10, headers: { 'content-type': 'application/json' } })
}

function* withHeartbeats() {
  yield role
  yield one
  yield* repeat(Buffer.from(': keep-alive\n\n'), Number.POSITIVE_INFINITY)
}

function* endless() {
  yield role
  for (;;) yield one
}
