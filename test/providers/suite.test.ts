import t from 'tap'
import type { ChatCompletionChunk } from '../../schemas/chat.ts'
import { chunkFrames, type Frames } from '../../schemas/frames.ts'
import type { Answer } from '../../schemas/gateway.ts'
import type { Attempt, Provider } from '../../schemas/provider.ts'
import * as suite from '../../testing/index.ts'
import { build, towards } from '../helper.ts'

// The suite is a test of others: here it is shown that each of its parts finds what it is to find.

/** A runner of the smallest kind. */
interface Runner extends suite.Test<Runner> {}
type Subject = suite.Subject<Runner>

/** Which parts of the suite with this title ran, and how those failed that did. */
async function run(title: string | RegExp, subject: Subject) {
  const ran: string[] = []
  const failed: string[] = []
  const runner: Runner = {
    async test(name, part) {
      const meant = typeof title === 'string' ? name === title : title.test(name)
      if (!meant && !/ conforms$|^it starts$/.test(name)) return
      if (meant) ran.push(name)
      try {
        await part(runner)
      } catch (error) {
        failed.push(`${name}: ${error instanceof Error ? error.message : error}`)
      }
    }
  }
  await suite.providerConformance(runner, subject)
  return { ran, failed }
}

/** openai-compatible as it is, with one thing changed. */
function changed(change: (real: Provider) => Partial<Provider>): Subject {
  return {
    name: 'changed',
    async start() {
      const upstream = await suite.startUpstream()
      t.teardown(() => upstream.close())
      const app = await build(t, towards(upstream))
      await app.ready()
      const real = app.gateway.providers.get('up')!
      return {
        provider: { ...real, ...change(real) },
        vendor: suite.openaiVendor(upstream),
        keys: ['sk-upstream-secret']
      }
    }
  }
}

const around = (send: (attempt: Attempt, real: Provider) => Promise<Answer>) =>
  changed(real => ({ send: attempt => send(attempt, real) }))

/** The chunks of a stream as another function would send them on. */
const restreamed = (restream: (source: AsyncIterable<Frames>) => AsyncIterable<readonly ChatCompletionChunk[]>) =>
  around(async (attempt, real) => {
    const answer = await real.send(attempt)
    if (!answer.stream) return answer
    async function* frames(source: AsyncIterable<Frames>) {
      for await (const chunks of restream(source)) yield chunkFrames(chunks)
    }
    return { ...answer, frames: frames(answer.frames) }
  })

const eachChunk = (change: (chunk: ChatCompletionChunk, index: number) => ChatCompletionChunk) =>
  restreamed(async function* (source) {
    let index = 0
    for await (const frames of source) yield [...frames].map(chunk => change(structuredClone(chunk), index++))
  })

const rebodied = (change: (body: Extract<Answer, { stream: false }>['body']) => void) =>
  around(async (attempt, real) => {
    const answer = await real.send(attempt)
    if (answer.stream) return answer
    const body = structuredClone(answer.body)
    change(body)
    return { ...answer, body, raw: null }
  })

/** What fails of a provider with this fault, by the title of the part that has to find it. */
const faults: ReadonlyArray<readonly [title: string | RegExp, fault: string, subject: Subject]> = [
  ['it has a name and says what it can do', 'a name of two words', changed(() => ({ name: 'two words' }))],
  ['a whole answer has the form of a completion', 'no time', rebodied(body => void (body.created = Number.NaN))],
  [
    'a whole answer has the form of a completion',
    'a reason of its own',
    rebodied(({ choices: [choice] }) => {
      Object.assign(choice!, { finish_reason: 'end_turn' })
    })
  ],
  [
    'a stream has the form of chunks and says what a whole answer says',
    'an id for each chunk',
    eachChunk((chunk, index) => ({ ...chunk, id: `c${index}` }))
  ],
  [
    'a stream has the form of chunks and says what a whole answer says',
    'two ends',
    eachChunk(chunk => ({
      ...chunk,
      choices: chunk.choices.map(choice => ({ ...choice, finish_reason: 'stop' }))
    }))
  ],
  [
    'frames know whether they finish and what they report, and can be read again',
    'frames that are read once',
    around(async (attempt, real) => {
      const answer = await real.send(attempt)
      if (!answer.stream) return answer
      async function* frames(source: AsyncIterable<Frames>) {
        for await (const read of source) {
          const once = read[Symbol.iterator]()
          yield { ...chunkFrames([...read]), [Symbol.iterator]: () => once }
        }
      }
      return { ...answer, frames: frames(answer.frames) }
    })
  ],
  [
    'the request it is given stays as it is',
    'a request that is written to',
    around((attempt, real) => {
      attempt.request.messages[0]!['changed'] = true
      return real.send(attempt)
    })
  ],
  [
    'an attempt that was aborted before it began fails with the reason',
    'a signal that nobody looks at',
    around((attempt, real) => real.send({ ...attempt, signal: new AbortController().signal }))
  ],
  [
    'no listener stays on the signal',
    'a listener',
    around((attempt, real) => {
      attempt.signal.addEventListener('abort', () => {})
      return real.send(attempt)
    })
  ],
  [
    'a text: a whole answer says it',
    'a character less',
    rebodied(({ choices: [choice] }) => {
      choice!.message.content = choice!.message.content!.slice(1)
    })
  ],
  [
    'a text that became too long: a stream says it, however its bytes are split',
    'always the same end',
    eachChunk(chunk => ({
      ...chunk,
      choices: chunk.choices.map(choice => ({ ...choice, finish_reason: choice.finish_reason && 'stop' }))
    }))
  ],
  [
    'a call without arguments: a whole answer says it',
    'no calls',
    rebodied(({ choices: [choice] }) => {
      delete choice!.message.tool_calls
    })
  ],
  [
    'parallel calls after a text: a stream says it, however its bytes are split',
    'calls in one',
    eachChunk(chunk => {
      for (const call of chunk.choices[0]?.delta.tool_calls ?? []) call.index = 0
      return chunk
    })
  ],
  [
    'parallel calls after a text: a stream says it, however its bytes are split',
    'the same id for all',
    eachChunk(chunk => {
      for (const call of chunk.choices[0]?.delta.tool_calls ?? []) if (call.id) call.id = 'call'
      return chunk
    })
  ],
  [
    'thoughts and a text: a stream says it, however its bytes are split',
    'thoughts in the text',
    eachChunk(chunk => {
      const delta = chunk.choices[0]?.delta
      if (delta?.['reasoning_content']) delta.content = String(delta['reasoning_content'])
      return chunk
    })
  ],
  [
    'tokens read from a cache: a whole answer says it',
    'cached tokens that count twice',
    rebodied(({ usage }) => {
      usage!.prompt_tokens += usage!.prompt_tokens_details!.cached_tokens!
      usage!.total_tokens += usage!.prompt_tokens_details!.cached_tokens!
    })
  ],
  [
    'tokens written to a cache: a whole answer says it',
    'writes that nobody sees',
    rebodied(({ usage }) => {
      delete usage!.prompt_tokens_details!.cache_write_tokens
    })
  ],
  [
    'tokens of thoughts: a stream says it, however its bytes are split',
    'usage that is added up',
    restreamed(async function* (source) {
      for await (const frames of source) {
        yield [...frames].map(chunk =>
          chunk.usage
            ? { ...chunk, usage: { ...chunk.usage, completion_tokens: 2 * chunk.usage.completion_tokens } }
            : chunk
        )
      }
    })
  ],
  [
    'a stream says a text in its pieces',
    'a stream in one piece',
    restreamed(async function* (source) {
      const all: ChatCompletionChunk[] = []
      for await (const frames of source) all.push(...frames)
      const content = all.map(chunk => chunk.choices[0]?.delta.content ?? '').join('')
      yield [{ ...all[0]!, choices: [{ index: 0, delta: { content } }] }, ...all.slice(-2)]
    })
  ],
  [/^a (short|text: a) stream (arrives|says)/, 'a parser of single reads', naive()],
  ['a redirect is a fault, and never followed', 'a client that follows', naive()],
  [
    'an attempt uses its own key',
    'always the first key',
    changed(real => ({
      keys: 2,
      send: attempt => real.send({ ...attempt, key: 0 })
    }))
  ],
  [
    'an attempt is one request, with the headers that layers set',
    'no headers',
    around((attempt, real) => real.send({ ...attempt, headers: {} }))
  ],
  [
    'an attempt is one request, with the headers that layers set',
    'two requests',
    around(async (attempt, real) => {
      const first = await real.send(attempt)
      if (first.stream) for await (const _ of first.frames);
      return real.send(attempt)
    })
  ],
  [
    'a refusal with 429 is a fault with 429',
    'tries of its own',
    around(async (attempt, real) => {
      return real.send(attempt).catch(() => real.send(attempt))
    })
  ],
  [
    'a refusal with 401 is a fault with 502',
    'the words of the vendor',
    around(async (attempt, real) => {
      return real.send(attempt).catch(error => {
        throw Object.assign(error, { message: error.cause.message })
      })
    })
  ],
  [
    'a limit says when to come again',
    'a limit without its time',
    around(async (attempt, real) => {
      return real.send(attempt).catch(error => {
        throw Object.assign(error, { retryAfter: null })
      })
    })
  ],
  [
    'no fault holds a key',
    'a fault with the key',
    around(async (attempt, real) => {
      return real.send(attempt).catch(error => {
        throw Object.assign(error, { message: 'sk-upstream-secret is wrong' })
      })
    })
  ],
  [
    'a refusal in no form that is known is a fault by its status',
    'an error of the language',
    around(async (attempt, real) => {
      return real.send(attempt).catch(() => JSON.parse('<html>'))
    })
  ],
  [
    'an answer that cannot be read is a fault',
    'an error of the language',
    around(async (attempt, real) => {
      return real.send(attempt).catch(() => JSON.parse('<html>'))
    })
  ],
  ['a stream cut before its end never counts as finished', 'an end that it makes up', ended()],
  ['a stream that cannot be read is never finished', 'an end that it makes up', ended()],
  ['a stream that breaks off is a fault after what it said', 'an end that it makes up', ended()],
  ['a stream that says that it failed is a fault after what it said', 'an end that it makes up', ended()],
  [
    'a silent vendor is given up by the deadlines',
    'other deadlines',
    around((attempt, real) =>
      real
        .send({ ...attempt, timeouts: { ...attempt.timeouts, headers: 1, firstToken: 1, idle: 1, connect: 0 } })
        .catch(() => {
          throw new Error('too late')
        })
    )
  ],
  ['it lists models', 'none', changed(() => ({ models: async () => [] }))],
  [
    'models fails with a fault and ends with its signal',
    'an error of the language',
    changed(() => ({ models: async () => JSON.parse('<html>') }))
  ]
]

/** A stream that ends well whatever happens. */
function ended(): Subject {
  return restreamed(async function* (source) {
    const chunk = { id: '1', object: 'chat.completion.chunk' as const, created: 1, model: 'm' }
    try {
      for await (const frames of source) yield [...frames]
    } catch {}
    yield [{ ...chunk, choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }]
  })
}

/** What most people write first. */
function naive(): Subject {
  return {
    name: 'naive',
    async start() {
      const upstream = await suite.startUpstream()
      t.teardown(() => upstream.close())
      const send = async ({ request }: Attempt): Promise<Answer> => {
        const response = await fetch(`${upstream.url}/chat/completions`, {
          method: 'POST',
          body: JSON.stringify(request)
        })
        if (request.stream !== true) {
          const body = await response.json()
          return { stream: false, body: body as Extract<Answer, { stream: false }>['body'], raw: null }
        }
        async function* frames() {
          const decoder = new TextDecoder()
          for await (const bytes of response.body!) {
            for (const event of decoder.decode(bytes).split('\n\n')) {
              if (!event.startsWith('data: {')) continue
              yield chunkFrames([JSON.parse(event.slice(6))])
            }
          }
        }
        return { stream: true, frames: frames() }
      }
      return { provider: { name: 'naive', capabilities: { dialects: [] }, send }, vendor: suite.openaiVendor(upstream) }
    }
  }
}

for (const [title, fault, subject] of faults) {
  t.test(`${fault}: found by "${title}"`, async t => {
    const { ran, failed } = await run(title, subject)
    t.ok(ran.length > 0, 'there is such a part')
    t.ok(failed.length > 0)
    for (const failure of failed) t.match(failure, title)
    t.same(
      (
        await run(
          title,
          changed(() => ({}))
        )
      ).failed,
      [],
      'without the fault it does not fail'
    )
    t.comment(failed[0])
  })
}
