import type { FastifyInstance } from 'fastify'
import t from 'tap'
import modelGateway from '../app.ts'
import { ModelNotFound } from '../schemas/errors.ts'
import type { Frames } from '../schemas/frames.ts'
import {
  type Answer,
  type Caller,
  type Completed,
  type Expense,
  type Gateway,
  type Inference,
  type Layer,
  type Outcome,
  stages
} from '../schemas/gateway.ts'
import type { Attempt, Provider } from '../schemas/provider.ts'
import type { Usage } from '../schemas/usage.ts'

// What must not compile. tsc is the judge: an expected error that does not come is an error. Nothing here is run.

declare const app: FastifyInstance
declare const gateway: Gateway
declare const provider: Provider
declare const attempt: Attempt
declare const otherAttempt: Attempt
declare const inference: Inference
declare const other: Inference
declare const caller: Caller
declare const answer: Answer
declare const completed: Completed
declare const frames: Frames
declare const usage: Usage
declare const outcome: Outcome
const request = { messages: [{ role: 'user' as const, content: 'Hello' }] }

/** One sentence about code that is compiled and never run. */
function compiled(claim: string, code: () => unknown): void {
  t.test(claim, async t => t.type(code, 'function'))
}

compiled('a provider is not asked without a line in the ledger', () => {
  const { entry, ...unaccounted } = attempt
  // @ts-expect-error the entry is missing
  provider.send(unaccounted)
  // @ts-expect-error the entry is missing
  gateway.send(unaccounted)
  // @ts-expect-error null is no entry
  provider.send({ ...attempt, entry: null })
  // @ts-expect-error an entry can be settled and failed
  provider.send({ ...attempt, entry: {} })
  provider.send({ ...attempt, entry })
})

compiled('an accountant writes lines down that the kernel ends', () => {
  gateway.accountWith({ open: expense => t.comment(expense.inference.id) })
  gateway.accountWith({ open: async () => {}, cost: (target, usage) => (target.price === null ? null : usage.input) })
  // @ts-expect-error a function alone says not what it does
  gateway.accountWith(() => {})
  // @ts-expect-error a price is a number or unknown
  gateway.accountWith({ cost: () => 'dear' })
  const entry: Expense = attempt.entry
  // @ts-expect-error readonly: only its end decides what it cost
  entry.cost = 0
  // @ts-expect-error whoever ends it does not say what was used: its meter does
  entry.settle(usage)
})

compiled('an attempt is written nowhere but in its headers', () => {
  attempt.headers['traceparent'] = '00'
  // @ts-expect-error headers are texts
  attempt.headers['x-count'] = 5
  // @ts-expect-error readonly
  attempt.headers = {}
  // @ts-expect-error readonly
  attempt.request = request
  // @ts-expect-error readonly
  attempt.entry = otherAttempt.entry
  // @ts-expect-error readonly
  attempt.timeouts.total = 5
  // @ts-expect-error of the caller a provider sees no more than where it came in
  attempt.caller.principal
})

compiled('a stage is one of the list', () => {
  const layer: Layer = (inference, next) => next(inference)
  for (const stage of stages) gateway.intercept(stage, layer)
  // @ts-expect-error there is no such stage
  gateway.intercept('perform', layer)
  // @ts-expect-error the list is fixed
  stages.push('perform')
})

compiled('a layer gives an answer, as a promise', () => {
  gateway.intercept('cache', async (inference, next) => next(inference))
  // @ts-expect-error it gives nothing
  gateway.intercept('cache', async (inference, next) => void next(inference))
  // @ts-expect-error it gives no promise
  gateway.intercept('cache', () => answer)
  // @ts-expect-error next wants the inference
  gateway.intercept('cache', (_inference, next) => next())
  // @ts-expect-error an answer is whole or a stream
  gateway.intercept('cache', async () => ({ frames: [] }))
})

compiled('of an inference a layer replaces the request and nothing else', () => {
  inference.request = { ...inference.request, model: 'other' }
  // @ts-expect-error messages are missing
  inference.request = { model: 'other' }
  // @ts-expect-error resolved, not written
  inference.route = other.route
  // @ts-expect-error readonly
  inference.route.targets[0] = other.route.targets[0]!
  // @ts-expect-error readonly
  inference.facts = other.facts
  // @ts-expect-error readonly
  inference.facts.warnings = []
  // @ts-expect-error readonly
  inference.usage = usage
  // @ts-expect-error readonly
  inference.principal = other.principal
  // @ts-expect-error readonly
  inference.principal.tenant = 'other'
  // @ts-expect-error readonly
  inference.signal = new AbortController().signal
  // @ts-expect-error not a state of the cache
  inference.facts.cache = 'maybe'
})

compiled('what the kernel reports is not written', () => {
  // @ts-expect-error readonly
  gateway.running = 0
  // @ts-expect-error readonly
  gateway.closing = true
  // @ts-expect-error readonly
  usage.input = 5
  // @ts-expect-error readonly
  outcome.status = 'completed'
  // @ts-expect-error readonly
  completed.facts = inference.facts
  // @ts-expect-error readonly
  frames.raw = null
  // @ts-expect-error there is no such end
  outcome.status === 'ok'
})

compiled('an answer is whole or a stream, and says which before it is read', () => {
  if (completed.stream) for (const read of [completed.frames]) read[Symbol.asyncIterator]()
  else completed.body.choices[0]?.message.content?.trim()
  // @ts-expect-error which one?
  completed.body
  // @ts-expect-error which one?
  completed.frames
  // @ts-expect-error a whole answer has no frames
  completed.stream === false && completed.frames
  // @ts-expect-error bytes may be gone
  frames.raw.length
})

compiled('chunks and bodies keep fields that we do not know, as unknown', () => {
  for (const chunk of frames) {
    chunk['future']
    // @ts-expect-error unknown has no fields
    chunk['future'].more
    // @ts-expect-error there may be no choice
    chunk.choices[0].delta
  }
})

compiled('a call needs a caller, and a caller a principal and a signal', () => {
  gateway.complete(request, gateway.caller({ tenant: 'acme' }))
  // @ts-expect-error nobody asks
  gateway.complete(request)
  // @ts-expect-error no messages
  gateway.complete({ model: 'test' }, caller)
  const { principal, ...nameless } = caller
  // @ts-expect-error whom is it counted for?
  gateway.complete(request, nameless)
  const { signal, ...endless } = caller
  // @ts-expect-error when do they stop caring?
  gateway.complete(request, endless)
  // @ts-expect-error there is no such lane
  gateway.complete(request, { ...endless, principal, signal, origin: { lane: 'pigeon' } })
})

compiled('a message has a role of the list', () => {
  // @ts-expect-error there is no such role
  gateway.complete({ messages: [{ role: 'oracle', content: 'Hello' }] }, caller)
  // @ts-expect-error a number is no content
  gateway.complete({ messages: [{ role: 'user', content: 5 }] }, caller)
})

compiled('gateway.decorate takes names that somebody has declared, with their types', () => {
  gateway.decorate('authenticate', () => caller.principal)
  // @ts-expect-error nobody has declared it
  gateway.decorate('teleport', () => {})
  // @ts-expect-error not what was declared
  gateway.decorate('authenticate', () => 'acme')
})

compiled('a provider has a name, says what it can do and sends', () => {
  gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send: async () => answer })
  // @ts-expect-error it cannot send
  gateway.providers.register({ name: 'up', capabilities: { dialects: [] } })
  // @ts-expect-error nothing is no answer
  gateway.providers.register({ name: 'up', capabilities: { dialects: [] }, send: async () => {} })
  // @ts-expect-error readonly
  provider.name = 'other'
})

compiled('a listener to frames is not waited for, one to the end may be', () => {
  inference.onSettled(async ({ status }) => status)
  inference.onFrames(read => void read.finished)
  // @ts-expect-error frames are not chunks
  inference.onFrames(read => read.choices)
})

compiled('a fault is made with words and thrown as an error with its place on the wire', () => {
  const error = new ModelNotFound('nowhere')
  error.statusCode.toFixed()
  // @ts-expect-error an object is no word
  new ModelNotFound({ model: 'nowhere' })
  // @ts-expect-error readonly
  error.headers['retry-after'] = '5'
})

compiled('a host knows its gateway by its type, and options are checked', () => {
  app.register(modelGateway, { prefix: '/llm', models: { test: { targets: [{ provider: 'echo', model: 'm' }] } } })
  app.gateway.complete(request, app.gateway.caller())
  // @ts-expect-error there is no such option
  app.register(modelGateway, { prefx: '/llm' })
  // @ts-expect-error there is no such type of provider
  app.register(modelGateway, { providers: { up: { type: 'oracle' } } })
  // @ts-expect-error a target needs a model
  app.register(modelGateway, { models: { test: { targets: [{ provider: 'echo' }] } } })
})
