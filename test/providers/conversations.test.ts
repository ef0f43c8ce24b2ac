import { Ajv } from 'ajv'
import t, { type Test } from 'tap'
import { ChatRequest, type ContentPart, type Message } from '../../schemas/chat.ts'
import { detail, InvalidRequest } from '../../schemas/errors.ts'
import type { Attempt, Provider } from '../../schemas/provider.ts'
import { CONVERSATIONS, conversation, crossings, type Item, lossBetween } from '../conformance/conversations.ts'
import { openaiVendor } from '../conformance/provider.ts'
import { build, towards } from '../helper.ts'
import { startUpstream } from '../upstream.ts'

// The generated conversations are tests of others: here it is shown that they see what they are to see.

const seeds = Array.from({ length: CONVERSATIONS }, (_, index) => index + 1)

t.test('conversations are the same for the same seed', async t => {
  t.same(conversation(7), conversation(7))
  t.notSame(conversation(7), conversation(8))
})

t.test('conversations are legal', async t => {
  const valid = new Ajv({ strict: false }).compile(ChatRequest)
  for (const seed of seeds) {
    const request = conversation(seed)
    if (!valid(request)) t.fail(`${seed}: ${JSON.stringify(valid.errors)}`)
    if (!JSON.stringify(request).isWellFormed()) t.fail(`${seed} has a lone surrogate`)
    const open = new Set<string>()
    for (const { role, content, tool_calls, tool_call_id } of request.messages) {
      if (role === 'tool' && !open.delete(tool_call_id!)) t.fail(`${seed}: a result without its call`)
      if (role === 'tool') continue
      open.clear()
      for (const { id } of tool_calls ?? []) open.add(id!)
      if (open.size !== (tool_calls ?? []).length) t.fail(`${seed}: two calls of a turn have one id`)
      if (Array.isArray(content) && content.length === 0) t.fail(`${seed}: no parts`)
    }
  }
})

t.test('conversations have everything in them that makes translation hard', async t => {
  const partsOf = ({ content }: Message) => (Array.isArray(content) ? content : [])
  const roles = ({ messages }: ChatRequest) => messages.map(({ role }) => role).join(' ')
  const calls = ({ messages }: ChatRequest) => messages.flatMap(({ tool_calls }) => tool_calls ?? [])
  const any = (test: (message: Message) => boolean) => (request: ChatRequest) => request.messages.some(test)
  const url = (part: ContentPart) => (typeof part.image_url === 'object' ? part.image_url.url : '')
  const features: Record<string, (request: ChatRequest) => boolean> = {
    'a system message in the middle': request => /user (system|developer) /.test(roles(request)),
    'nothing but a system message': request => /^(system|developer)$/.test(roles(request)),
    'neighbours of one role': request => /user user|assistant assistant/.test(roles(request)),
    'the assistant begins': request => roles(request).startsWith('assistant'),
    'the assistant ends': request => roles(request).endsWith('assistant'),
    'a tool ends': request => roles(request).endsWith('tool'),
    'empty content': any(({ content }) => content === ''),
    'an empty part': any(message => partsOf(message).some(part => part.text === '')),
    'several parts': any(message => partsOf(message).length > 1),
    'null with calls': any(({ content, tool_calls }) => content === null && tool_calls != null),
    'no content at all': message => message.messages.some(({ content }) => content === undefined),
    'text with calls': any(({ content, tool_calls }) => Boolean(content) && tool_calls != null),
    'three calls at once': any(({ tool_calls }) => tool_calls?.length === 3),
    'empty arguments': request => calls(request).some(call => call.function?.arguments === ''),
    'an empty object': request => calls(request).some(call => call.function?.arguments === '{}'),
    'nested arguments': request => calls(request).some(call => call.function?.arguments?.includes('"deep"')),
    'a missing result': request => calls(request).length > request.messages.filter(m => m.role === 'tool').length,
    'calls without tools': request => calls(request).length > 0 && request.tools === undefined,
    'an id twice': request => new Set(calls(request).map(({ id }) => id)).size < calls(request).length,
    'results as parts': any(message => message.role === 'tool' && partsOf(message).length > 1),
    'an empty result': any(({ role, content }) => role === 'tool' && content === ''),
    'a refusal': any(message => typeof message['refusal'] === 'string'),
    'a refusal as a part': any(message => partsOf(message).some(part => part.type === 'refusal')),
    'a name': any(({ name }) => name !== undefined),
    'a picture inside': any(message => partsOf(message).some(part => url(part).startsWith('data:'))),
    'a picture elsewhere': any(message => partsOf(message).some(part => url(part).startsWith('https:'))),
    'a file': any(message => partsOf(message).some(part => part.type === 'file')),
    'a forced tool': request => typeof request['tool_choice'] === 'object'
  }
  for (const [name, has] of Object.entries(features)) {
    const found = seeds.filter(seed => has(conversation(seed))).length
    t.ok(found >= 10, `${name}: ${found}`)
  }
  const outOfOrder = seeds.filter(seed =>
    /call_2\S+"(?:(?!"assistant").)*call_1\S+"/.test(resultsOf(conversation(seed)))
  )
  t.ok(outOfOrder.length >= 10, `results in another order: ${outOfOrder.length}`)
})

function resultsOf({ messages }: ChatRequest): string {
  return JSON.stringify(messages.map(({ role, tool_call_id }) => (role === 'tool' ? tool_call_id : role)))
}

t.test('what a vendor cannot take is left out where it says so', async t => {
  const none = JSON.stringify(seeds.map(seed => conversation(seed, { images: 'none', files: false, model: 'own' })))
  t.notMatch(none, /"type":"(image_url|file)"/)
  t.match(none, '"model":"own"')
  const inline = JSON.stringify(seeds.map(seed => conversation(seed, { images: 'inline' })))
  t.match(inline, '"url":"data:')
  t.notMatch(inline, '"url":"https:')
})

/** A provider that speaks OpenAI's wire and changes what it is given. */
async function changing(t: Test, change: (messages: Message[], request: ChatRequest) => unknown) {
  const upstream = await startUpstream()
  t.teardown(() => upstream.close())
  const app = await build(t, towards(upstream))
  await app.ready()
  const real = app.gateway.providers.get('up')!
  const provider: Provider = {
    ...real,
    async send(attempt: Attempt) {
      const request = structuredClone(attempt.request)
      const messages = change(request.messages, request) ?? request.messages
      return real.send({ ...attempt, request: { ...request, messages: messages as Message[] } })
    }
  }
  const vendor = openaiVendor(upstream)
  return { provider, vendor }
}

const parts = (messages: Message[]) => messages.flatMap(({ content }) => (Array.isArray(content) ? content : []))
const losses: Record<string, (messages: Message[], request: ChatRequest) => unknown> = {
  'a text': messages => messages.filter(({ role }, index) => role !== 'user' || index !== messages.length - 1),
  'the last part of several': messages =>
    messages.map(message =>
      Array.isArray(message.content) ? { ...message, content: message.content.slice(0, 1) } : message
    ),
  'white space inside': messages =>
    messages.map(m => (typeof m.content === 'string' ? { ...m, content: m.content.replaceAll(/\s+/g, ' ') } : m)),
  'a character outside the first plane': messages =>
    messages.map(m =>
      typeof m.content === 'string' ? { ...m, content: m.content.replaceAll(/[^\0-\uffff]/gu, '') } : m
    ),
  'the form of characters': messages =>
    messages.map(m => (typeof m.content === 'string' ? { ...m, content: m.content.normalize('NFC') } : m)),
  'a picture': messages => {
    for (const message of messages)
      if (Array.isArray(message.content)) message.content = message.content.filter(part => part.image_url === undefined)
  },
  'the type of a picture': messages => {
    for (const part of parts(messages))
      if (typeof part.image_url === 'object') part.image_url.url = part.image_url.url.replace('image/jpeg', 'image/png')
  },
  'the place of a picture': messages => {
    for (const message of messages)
      if (Array.isArray(message.content)) message.content.sort((a, b) => a.type.localeCompare(b.type))
  },
  'a file': messages => {
    for (const message of messages)
      if (Array.isArray(message.content)) message.content = message.content.filter(part => part.type !== 'file')
  },
  'later instructions': messages =>
    messages.filter(({ role }, index) => index === 0 || (role !== 'system' && role !== 'developer')),
  'the role developer': messages => messages.filter(({ role }) => role !== 'developer'),
  'a refusal': messages => {
    for (const message of messages) delete message['refusal']
  },
  'a call': messages => {
    for (const message of messages) message.tool_calls?.splice(2)
  },
  'an argument': messages => {
    for (const { tool_calls } of messages)
      for (const { function: called } of tool_calls ?? []) {
        if (called?.arguments?.includes('"text"')) called.arguments = called.arguments.replace('"text"', '"other"')
      }
  },
  'all arguments': messages => {
    for (const { tool_calls } of messages) for (const { function: called } of tool_calls ?? []) called!.arguments = '{}'
  },
  'which result is whose': messages => {
    const results = messages.filter(({ role }) => role === 'tool')
    const ids = results.map(({ tool_call_id }) => tool_call_id!)
    for (const [index, result] of results.entries()) result.tool_call_id = ids.at(index - 1)!
  },
  'an empty result': messages => messages.filter(({ role, content }) => role !== 'tool' || content !== ''),
  'later results': messages =>
    messages.filter(({ role }, index) => role !== 'tool' || messages[index - 1]?.role !== 'tool'),
  'who spoke': messages => {
    for (const message of messages) if (message.role === 'assistant' && !message.tool_calls) message.role = 'user'
  },
  'the order of turns': messages => messages.toReversed(),
  'the order of neighbours': messages =>
    messages.flatMap((message, index) => {
      if (message.role !== 'user') return [message]
      if (messages[index + 1]?.role === 'user') return []
      return messages[index - 1]?.role === 'user' ? [message, messages[index - 1]] : [message]
    }),
  'the first tool': (_, request) => void request.tools?.shift(),
  'a tool that has to be called': (_, request) => {
    if (typeof request['tool_choice'] === 'object') request['tool_choice'] = 'auto'
  },
  'that no tool is to be called': (_, request) => {
    if (request['tool_choice'] === 'none') delete request['tool_choice']
  }
}

for (const [name, change] of Object.entries(losses)) {
  t.test(`a provider that loses ${name} is found out`, async t => {
    const { provider, vendor } = await changing(t, change)
    const { lost, refused } = await crossings(provider, vendor, {}, 400)
    t.ok(lost.length > 0, `${lost.length}`)
    t.equal(refused.length, 0)
    t.match(lost[0], { seed: Number, why: /turn|system|tool/ })
  })
}

t.test('a provider that says more than it was given is found out', async t => {
  const more: Message[] = [
    { role: 'user', content: 'Please.' },
    { role: 'assistant', content: 'Yes.' }
  ]
  const { provider, vendor } = await changing(t, messages => [...messages, ...more])
  t.equal((await crossings(provider, vendor, {}, 50)).lost.length, 50)
})

t.test('a provider that asks twice is found out', async t => {
  const { provider, vendor } = await changing(t, () => {})
  const twice = { ...provider, send: (attempt: Attempt) => provider.send(attempt).then(() => provider.send(attempt)) }
  t.match((await crossings(twice, vendor, {}, 1)).lost, [{ seed: 1, why: '2 requests arrived' }])
})

t.test('a refusal has to be clear', async t => {
  const { provider, vendor } = await changing(t, () => {})
  const failing = (error: Error) => ({ ...provider, send: () => Promise.reject(error) })
  const clear = await crossings(failing(detail(new InvalidRequest('No.'), { param: 'messages' })), vendor, {}, 2)
  t.same(clear, {
    lost: [],
    refused: [1, 2].map(seed => ({ seed, why: 'No. (param: messages)' }))
  })
  for (const error of [
    new InvalidRequest('No.'),
    detail(new InvalidRequest('No.'), { param: 'messages', statusCode: 500 }),
    new TypeError('undefined is not a function')
  ])
    t.equal((await crossings(failing(error), vendor, {}, 1)).lost.length, 1)
})

t.test('what wires do differently is no loss', async t => {
  const { provider, vendor } = await changing(t, (messages, request) => {
    if (request['tool_choice'] === 'none') delete request.tools
    return likeStrictVendors(messages)
  })
  t.same(await crossings(provider, vendor), { lost: [], refused: [] })
})

/** Instructions first, roles by turns, a user first, every call with an id of our own and its result behind it. */
function likeStrictVendors(messages: Message[]): Message[] {
  const system = messages.filter(({ role }) => role === 'system' || role === 'developer')
  const spoken = messages.filter(message => !system.includes(message) && !isEmpty(message))
  const turns: Message[] = system.map(message => ({ ...message, role: 'system', content: textOf(message.content) }))
  if (spoken[0]?.role !== 'user') turns.push({ role: 'user', content: '.' })
  let calls = 0
  for (const [index, message] of spoken.entries()) {
    if (message.role === 'tool') continue
    if (message.role === 'user') {
      turns.push(message)
      continue
    }
    const said = [textOf(message.content), message['refusal']].filter(text => typeof text === 'string').join('\n\n')
    const made = (message.tool_calls ?? []).map(call => ({ ...call, own: `c${++calls}` }))
    turns.push({ role: 'assistant', content: said.trim(), tool_calls: made.map(call => ({ ...call, id: call.own })) })
    const until = spoken.findIndex((other, at) => at > index && other.role !== 'tool')
    const results = spoken.slice(index + 1, until === -1 ? undefined : until)
    for (const { id, own } of made) {
      const result = results.find(({ tool_call_id }) => tool_call_id === id)
      const content = result === undefined ? 'interrupted' : textOf(result.content)
      turns.push({ role: 'tool', tool_call_id: own, content })
    }
  }
  return turns
}

function isEmpty(message: Message): boolean {
  if (message.role === 'tool' || message.tool_calls?.length || message['refusal']) return false
  const { content } = message
  return Array.isArray(content) ? content.every(part => part.text?.trim() === '') : (content ?? '').trim() === ''
}

function textOf(content: Message['content']): string {
  if (!Array.isArray(content)) return content ?? ''
  return content.map(part => part.text ?? String(part['refusal'] ?? '')).join('\n')
}

t.test('loss is said in words that help', async t => {
  const say = (...items: Item[]) => ({ system: [], turns: [{ role: 'user' as const, items }], tools: [] })
  const text = (text: string): Item => ({ type: 'text', text })
  t.equal(lossBetween(say(text('a'), text('b')), say(text(' a\nb '))), null)
  t.equal(
    lossBetween(say(text('a')), say(text('b'))),
    'turn 1 of the user, text 1: {"type":"text","call":null,"texts":["a"]} became {"type":"text","call":null,"texts":["b"]}'
  )
  t.equal(lossBetween(say(text('a')), { system: [], turns: [], tools: [] }), 'turn 1 of the user is gone')
})
