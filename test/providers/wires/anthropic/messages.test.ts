import t, { type Test } from 'tap'
import { conversationOf, lacksThoughts, type Thought } from '../../../../providers/wires/anthropic/messages.ts'
import type { Message } from '../../../../schemas/chat.ts'

const thought: Thought = { type: 'thinking', thinking: 'Hm.', signature: 'c2ln' }

function crossed(messages: Message[], recollect: (call: string) => readonly Thought[] | undefined = () => undefined) {
  const warnings = new Set<string>()
  const { system, turns, called } = conversationOf(messages, recollect, warnings)
  return { system, turns, called: [...called], warnings: [...warnings] }
}

function refused(t: Test, message: Message | Message[], param: string, words: RegExp | string) {
  const messages = Array.isArray(message) ? message : [message]
  t.throws(() => crossed(messages), { statusCode: 400, param, message: words, wire: null })
}

const text = (text: string) => ({ type: 'text', text })
const user = (content: Message['content']): Message => ({ role: 'user', content })
const assistant = (content: Message['content']): Message => ({ role: 'assistant', content })
const tool = (id: string, content: Message['content']): Message => ({ role: 'tool', tool_call_id: id, content })
const call = (id: string | undefined, name = 'f', args = '{}') => ({
  id,
  type: 'function',
  function: { name, arguments: args }
})
const calling = (...tool_calls: ReturnType<typeof call>[]): Message => ({
  role: 'assistant',
  content: null,
  tool_calls
})
const use = (id: string, name = 'f', input: object = {}) => ({ type: 'tool_use', id, name, input })
const result = (id: string, content?: unknown) => ({ type: 'tool_result', tool_use_id: id, content })
const missing = (id: string) => ({ ...result(id, 'There is no result.'), is_error: true })

t.test('system and developer messages go before the conversation, in their order', async t => {
  const { system, turns, warnings } = crossed([
    { role: 'system', content: 'One.' },
    { role: 'developer', content: [text('Two.'), text(' ')] },
    user('Hi')
  ])
  t.same(system, [text('One.'), text('Two.')])
  t.same(turns, [{ role: 'user', content: [text('Hi')] }])
  t.same(warnings, [])
})

t.test('one within the conversation moves, and that is said', async t => {
  const { system, turns, warnings } = crossed([user('Hi'), { role: 'system', content: 'Late.' }, user('there')])
  t.same(system, [text('Late.')])
  t.same(turns, [{ role: 'user', content: [text('Hi'), text('there')] }])
  t.same(warnings, ['System messages were moved to the beginning.'])
})

t.test('texts without a word are left out, and messages of nothing else with them', async t => {
  const { turns } = crossed([user([text(''), text('Hi'), text(' \n')]), assistant(' '), assistant(null), user('')])
  t.same(turns, [{ role: 'user', content: [text('Hi')] }])
})

t.test('neighbours of one role are one message', async t => {
  const { turns } = crossed([user('a'), user('b'), assistant('c'), assistant('d'), user('e')])
  t.same(turns, [
    { role: 'user', content: [text('a'), text('b')] },
    { role: 'assistant', content: [text('c'), text('d')] },
    { role: 'user', content: [text('e')] }
  ])
})

t.test('a conversation that the user does not begin is begun', async t => {
  for (const messages of [[assistant('Hello.')], [{ role: 'system' as const, content: 'Be kind.' }], [user('')]]) {
    const { turns, warnings } = crossed(messages)
    t.same(turns[0], { role: 'user', content: [text('.')] })
    t.match(warnings[0], 'The user has to speak first')
  }
})

t.test('what the assistant is to go on with has no white space at its end', async t => {
  const { turns } = crossed([user('Count.'), assistant('One, \n')])
  t.same(turns[1], { role: 'assistant', content: [text('One,')] })
  const between = crossed([user('Count.'), assistant('One, \n'), user('Go on.')])
  t.same(between.turns[1], { role: 'assistant', content: [text('One, \n')] })
})

t.test('results of parallel calls are one message, before what the user says', async t => {
  const { turns, called } = crossed([
    user('?'),
    { ...calling(call('a', 'f', '{"x":1}'), call('b', 'g')), content: 'Let me see.' },
    tool('b', 'B'),
    tool('a', [text('A'), text('')]),
    user('So?')
  ])
  t.same(turns.slice(1), [
    { role: 'assistant', content: [text('Let me see.'), use('a', 'f', { x: 1 }), use('b', 'g')] },
    { role: 'user', content: [result('b', 'B'), result('a', [text('A')]), text('So?')] }
  ])
  t.same(called, ['f', 'g'])
})

t.test('an empty result has no content', async t => {
  const { turns } = crossed([user('?'), calling(call('a'), call('b')), tool('a', ''), tool('b', [text(' ')])])
  t.same(turns[2]?.content, [result('a'), result('b')])
})

t.test('missing results are errors, wherever the conversation goes on or ends', async t => {
  const { turns, warnings } = crossed([
    user('?'),
    calling(call('a'), call('b')),
    tool('b', 'B'),
    user('Well?'),
    calling(call('c'))
  ])
  t.same(turns[2]?.content, [result('b', 'B'), missing('a'), text('Well?')])
  t.same(turns[4], { role: 'user', content: [missing('c')] })
  t.same(warnings, ['Tool calls without a result were given an error as theirs.'])
})

t.test('an assistant that speaks on without its results stays apart', async t => {
  const { turns } = crossed([user('?'), calling(call('a')), assistant('Never mind.'), user('ok')])
  t.same(turns[2], { role: 'user', content: [missing('a')] })
  t.same(turns[3], { role: 'assistant', content: [text('Never mind.')] })
})

t.test('a result that answers no call before it is refused', async t => {
  refused(t, [user('?'), tool('x', '1')], 'messages[1].tool_call_id', /follow the assistant message/)
  refused(t, [calling(call('a')), user('no'), tool('a', '1')], 'messages[2].tool_call_id', /follow/)
  refused(t, [calling(call('a')), tool('a', '1'), tool('a', '2')], 'messages[2].tool_call_id', /follow/)
})

t.test('ids in other letters are written in base64, without losing what they were', async t => {
  const ids = ['functions.f:0', 'Grüße', '', 'b64-YQ', 'call_1-B', 'x y']
  const { turns } = crossed([user('?'), calling(...ids.map(id => call(id))), ...ids.map(id => tool(id, 'r'))])
  const own = turns[1]!.content.map(block => (block.type === 'tool_use' ? block.id : ''))
  for (const id of own) t.match(id, /^[a-zA-Z0-9_-]+$/)
  const back = own.map(id => (id.startsWith('b64-') ? Buffer.from(id.slice(4), 'base64url').toString() : id))
  t.same(back, ids)
  t.same(
    turns[2]!.content.map(block => (block.type === 'tool_result' ? block.tool_use_id : '')),
    own
  )
})

t.test('an id that comes again gets a number, and so does its result', async t => {
  const { turns } = crossed([
    user('?'),
    calling(call('c')),
    tool('c', '1'),
    calling(call('c')),
    tool('c', '2'),
    calling(call('c-2'))
  ])
  t.same(
    turns.slice(1).map(turn => turn.content[0]),
    [use('c'), result('c', '1'), use('c-2'), result('c-2', '2'), use('c-2-2'), missing('c-2-2')]
  )
  refused(t, calling(call('a'), call('a')), 'messages[0].tool_calls[1].id', /same id/)
  refused(t, calling(call(undefined), call(undefined)), 'messages[0].tool_calls[1].id', /same id/)
})

t.test('arguments are an object; none are an empty one', async t => {
  const odd = '{"__proto__": {"own": 1}, "a": "\\u00e9"}'
  const { turns } = crossed([user('?'), calling(call('a', 'f', ''), call('b', 'f', ' '), call('c', 'f', odd))])
  t.equal(
    JSON.stringify(turns[1]!.content.map(block => (block.type === 'tool_use' ? block.input : null))),
    '[{},{},{"__proto__":{"own":1},"a":"é"}]'
  )
  const at = 'messages[0].tool_calls[0].function.arguments'
  refused(t, calling(call('a', 'f', '{"a":')), at, 'The arguments of this call are not JSON.')
  for (const args of ['[1]', '"x"', 'null', '7']) refused(t, calling(call('a', 'f', args)), at, /JSON object/)
})

t.test('images cross as data and as links', async t => {
  const image = (image_url: string | { url: string; detail?: string }) => ({ type: 'image_url', image_url })
  const { turns } = crossed([
    user([
      image({ url: 'data:image/png;base64,aGk=', detail: 'low' }),
      image('DATA:Image/JPG;name=x;base64,aGk='),
      image({ url: 'https://a.example/b.png' })
    ])
  ])
  const data = (type: string) => ({ type: 'image', source: { type: 'base64', media_type: type, data: 'aGk=' } })
  t.same(turns[0]?.content, [
    data('image/png'),
    data('image/jpeg'),
    { type: 'image', source: { type: 'url', url: 'https://a.example/b.png' } }
  ])
  const at = 'messages[0].content[0].image_url.url'
  refused(t, user([image('data:image/tiff;base64,aGk=')]), at, /JPEG, PNG, GIF or WebP/)
  for (const url of ['data:image/png,hi', 'file:///etc/passwd', 'ftp://a.example/b', '', 'nonsense,x'])
    refused(t, user([image({ url })]), at, /http\(s\) URL or a data URL/)
})

t.test('files cross as documents', async t => {
  const file = (file: object) => ({ type: 'file', file })
  const text64 = Buffer.from('Grüße').toString('base64')
  const { turns } = crossed([
    user([
      file({ filename: 'a.pdf', file_data: 'data:application/pdf;base64,JVBERi0=' }),
      file({ file_data: 'JVBERi0xLjQ=' }),
      file({ filename: 'a.txt', file_data: `data:text/plain;base64,${text64}` }),
      file({ file_data: 'https://a.example/b.pdf' })
    ])
  ])
  const pdf = (data: string) => ({ type: 'base64', media_type: 'application/pdf', data })
  t.same(turns[0]?.content, [
    { type: 'document', source: pdf('JVBERi0='), title: 'a.pdf' },
    { type: 'document', source: pdf('JVBERi0xLjQ=') },
    { type: 'document', source: { type: 'text', media_type: 'text/plain', data: 'Grüße' }, title: 'a.txt' },
    { type: 'document', source: { type: 'url', url: 'https://a.example/b.pdf' } }
  ])
  refused(t, user([file({ file_id: 'file-1' })]), 'messages[0].content[0].file', /as `file_data`/)
  const zip = user([file({ file_data: 'data:application/zip;base64,aGk=' })])
  refused(t, zip, 'messages[0].content[0].file.file_data', /PDF or as plain text/)
})

t.test('what Claude cannot hear or see is refused by name', async t => {
  const at = 'messages[0].content[0].type'
  const audio = { type: 'input_audio', input_audio: { data: 'x', format: 'wav' } }
  refused(t, user([audio]), at, 'Claude takes no part of the type `input_audio` here.')
  refused(
    t,
    { role: 'system', content: [{ type: 'image_url', image_url: 'data:image/png;base64,aGk=' }] },
    at,
    /image_url/
  )
  refused(t, { role: 'assistant', content: null, audio: { id: 'a' } }, 'messages[0].audio', /no `audio`/)
  refused(
    t,
    { role: 'assistant', content: null, function_call: { name: 'f' } },
    'messages[0].function_call',
    /no `function_call`/
  )
  refused(t, { role: 'function', name: 'f', content: 'x' }, 'messages[0].role', /send the role `tool`/)
  const custom = { id: 'a', type: 'custom', custom: { name: 'f', input: 'x' } }
  refused(t, { role: 'assistant', tool_calls: [custom] }, 'messages[0].tool_calls[0].type', /calls of functions only/)
})

t.test('refusals are what the assistant said', async t => {
  const { turns } = crossed([
    user('?'),
    { ...assistant([text('a'), { type: 'refusal', refusal: 'b' }]), refusal: 'c' },
    user('ok')
  ])
  t.same(turns[1]?.content, [text('a'), text('b'), text('c')])
})

t.test('cache marks stay on their parts', async t => {
  const cache_control = { type: 'ephemeral', ttl: '1h' }
  const marked = (type: string, own: object) => ({ type, ...own, cache_control })
  const image = { source: { type: 'url', url: 'https://a.example/b.png' } }
  const { system, turns } = crossed([
    { role: 'system', content: [marked('text', { text: 'Long.' })] },
    user([marked('text', { text: 'Hi' }), marked('image_url', { image_url: 'https://a.example/b.png' })]),
    calling(call('a')),
    tool('a', [marked('text', { text: 'r' })])
  ])
  t.same(system, [marked('text', { text: 'Long.' })])
  t.same(turns[0]?.content, [marked('text', { text: 'Hi' }), marked('image', image)])
  t.same(turns[2]?.content, [result('a', [marked('text', { text: 'r' })])])
})

t.test('names of speakers are left out, and that is said', async t => {
  const { turns, warnings } = crossed([
    { ...user('Hi'), name: 'ann' },
    calling(call('a')),
    { ...tool('a', 'r'), name: 'f' }
  ])
  t.same(turns[0]?.content, [text('Hi')])
  t.same(warnings, ['Names of speakers were left out.'])
})

t.test('thoughts that the client kept go back as they came, before everything else', async t => {
  const redacted = { type: 'redacted_thinking', data: 'x' }
  const unsigned = { type: 'thinking', thinking: 'y', signature: '' }
  const kept = { ...calling(call('a')), content: 'Well.', thinking_blocks: [thought, unsigned, redacted, null, 'odd'] }
  const { turns } = crossed([user('?'), kept], () => [{ ...thought, thinking: 'other' }])
  t.same(turns[1]?.content, [thought, redacted, text('Well.'), use('a')])
})

t.test('thoughts that the client dropped are found by any of its calls', async t => {
  const messages = [user('?'), calling(call('a'), call('b')), tool('a', '1'), tool('b', '2'), calling(call('c'))]
  const { turns } = crossed(messages, id => (id === 'b' ? [thought] : undefined))
  t.same(turns[1]?.content, [thought, use('a'), use('b')])
  t.same(turns[3]?.content, [use('c')])
})

t.test('a loop of calls lacks its thoughts only where none of its messages has them', async t => {
  const lacks = (messages: Message[]) => lacksThoughts(conversationOf(messages, () => undefined, new Set()).turns)
  const kept = { ...calling(call('a')), thinking_blocks: [thought] }
  t.notOk(lacks([user('?')]))
  t.notOk(lacks([user('?'), calling(call('a')), tool('a', '1'), assistant('Done.'), user('Next?')]))
  t.ok(lacks([user('?'), calling(call('a')), tool('a', '1')]))
  t.notOk(lacks([user('?'), kept, tool('a', '1')]))
  t.notOk(lacks([user('?'), kept, tool('a', '1'), calling(call('b')), tool('b', '2')]))
  t.ok(lacks([user('?'), kept, tool('a', '1'), assistant('Done.'), user('Next?'), calling(call('b')), tool('b', '2')]))
})
