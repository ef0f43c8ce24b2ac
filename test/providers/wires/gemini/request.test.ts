import t from 'tap'
import type { Known, Surface } from '../../../../providers/wires/gemini/context.ts'
import { linksOf } from '../../../../providers/wires/gemini/parts.ts'
import { toGemini } from '../../../../providers/wires/gemini/request.ts'
import type { ChatRequest, Message, ToolCall } from '../../../../schemas/chat.ts'
import { type GatewayError, isGatewayError } from '../../../../schemas/errors.ts'

const surface: Surface = { opens: url => url.startsWith('https://files.example/'), callIds: true, serviceTier: true }
const nothing: Known = { signatures: { find: () => undefined } }
const user = { role: 'user' as const, content: 'Hi' }
const skip = 'skip_thought_signature_validator'

type Fields = { [field: string]: unknown }

function translated(fields: Fields, known: Known = nothing, own: Partial<Surface> = {}) {
  const request: ChatRequest = { model: 'gemini-2.5-flash', messages: [user], ...fields }
  return toGemini(deepFreeze(request), { ...surface, ...own }, known)
}

function contentsOf(messages: Message[], known: Known = nothing, model = 'gemini-2.5-flash') {
  return translated({ model, messages }, known).body.contents
}

function configOf(fields: Fields) {
  return translated(fields).body.generationConfig
}

/** What a request is refused with. */
function refusal(fields: Fields, own: Partial<Surface> = {}): GatewayError {
  try {
    translated(fields, nothing, own)
  } catch (error) {
    if (isGatewayError(error)) return error
    throw error
  }
  throw new Error('This should have been refused.')
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null) for (const inner of Object.values(value)) deepFreeze(inner)
  return Object.freeze(value)
}

const call = (id: string, name: string, args = '{}', more: object = {}) => ({
  id,
  type: 'function',
  function: { name, arguments: args },
  ...more
})
const calling = (...calls: ToolCall[]): Message => ({ role: 'assistant', content: null, tool_calls: calls })
const result = (id: string, content: string): Message => ({ role: 'tool', tool_call_id: id, content })

// Conversations

t.test('a plain conversation has two roles', async t => {
  const { body, warnings } = translated({
    messages: [
      { role: 'system', content: 'Be brief.' },
      { role: 'developer', content: [{ type: 'text', text: 'And kind.' }] },
      user,
      { role: 'assistant', content: 'Hello' },
      { role: 'user', content: [{ type: 'text', text: 'Zürich 🙂' }] }
    ]
  })
  t.strictSame(body, {
    contents: [
      { role: 'user', parts: [{ text: 'Hi' }] },
      { role: 'model', parts: [{ text: 'Hello' }] },
      { role: 'user', parts: [{ text: 'Zürich 🙂' }] }
    ],
    systemInstruction: { parts: [{ text: 'Be brief.' }, { text: 'And kind.' }] }
  })
  t.same(warnings, [])
})

t.test('neighbours of one role become one turn', async t => {
  const assistant = (content: string): Message => ({ role: 'assistant', content })
  t.strictSame(contentsOf([user, { role: 'user', content: 'again' }, assistant('a'), assistant('b')]), [
    { role: 'user', parts: [{ text: 'Hi' }, { text: 'again' }] },
    { role: 'model', parts: [{ text: 'a' }, { text: 'b' }] }
  ])
})

t.test('an assistant that says nothing is no turn', async t => {
  t.strictSame(contentsOf([user, { role: 'assistant', content: '' }, { role: 'user', content: 'b' }]), [
    { role: 'user', parts: [{ text: 'Hi' }, { text: 'b' }] }
  ])
})

t.test('a conversation that the assistant begins, or that nobody does, begins with a user', async t => {
  const space = { role: 'user', parts: [{ text: ' ' }] }
  t.strictSame(contentsOf([{ role: 'assistant', content: 'Hello' }]), [
    space,
    { role: 'model', parts: [{ text: 'Hello' }] }
  ])
  t.strictSame(contentsOf([{ role: 'system', content: 'x' }]), [space])
  t.strictSame(contentsOf([{ role: 'user', content: '' }]), [space])
  t.strictSame(contentsOf([{ role: 'user', content: [{ type: 'text', text: '' }] }]), [space])
})

t.test('Gemma hears the system from the user', async t => {
  const { body } = translated({
    model: 'gemma-3-27b-it',
    messages: [
      { role: 'system', content: 'Be' },
      { role: 'system', content: 'brief' },
      { role: 'assistant', content: 'Hm' }
    ]
  })
  t.strictSame(body, {
    contents: [
      { role: 'user', parts: [{ text: 'Be\n\nbrief' }, { text: ' ' }] },
      { role: 'model', parts: [{ text: 'Hm' }] }
    ]
  })
})

t.test('refusals are said like texts', async t => {
  const contents = contentsOf([
    user,
    { role: 'assistant', content: null, refusal: 'No.' },
    user,
    {
      role: 'assistant',
      content: [
        { type: 'text', text: 'Well, ' },
        { type: 'refusal', refusal: 'no.' }
      ]
    }
  ])
  t.same([contents[1]?.parts, contents[3]?.parts], [[{ text: 'No.' }], [{ text: 'Well, no.' }]])
})

t.test(
  'results of parallel calls are one turn right after them, in the order of the calls and with their names',
  async t => {
    t.strictSame(
      contentsOf([
        user,
        calling(call('a', 'weather', '{"city":"Z","n":{"deep":[1,null]}}'), call('b', 'now')),
        result('b', '12:00'),
        {
          role: 'tool',
          tool_call_id: 'a',
          content: [
            { type: 'text', text: '{"t"' },
            { type: 'text', text: ': 1}' }
          ]
        },
        { role: 'user', content: 'And?' }
      ]),
      [
        { role: 'user', parts: [{ text: 'Hi' }] },
        {
          role: 'model',
          parts: [
            { functionCall: { id: 'a', name: 'weather', args: { city: 'Z', n: { deep: [1, null] } } } },
            { functionCall: { id: 'b', name: 'now', args: {} } }
          ]
        },
        {
          role: 'user',
          parts: [
            { functionResponse: { id: 'a', name: 'weather', response: { output: '{"t": 1}' } } },
            { functionResponse: { id: 'b', name: 'now', response: { output: '12:00' } } }
          ]
        },
        { role: 'user', parts: [{ text: 'And?' }] }
      ]
    )
  }
)

t.test('a result that is missing is made up, and one that comes late is put where it belongs', async t => {
  const contents = contentsOf([
    user,
    calling(call('a', 'f'), call('b', 'g')),
    { role: 'user', content: 'Wait' },
    result('b', 'x')
  ])
  t.strictSame(contents.slice(2), [
    {
      role: 'user',
      parts: [
        { functionResponse: { id: 'a', name: 'f', response: { error: 'This call has no result.' } } },
        { functionResponse: { id: 'b', name: 'g', response: { output: 'x' } } }
      ]
    },
    { role: 'user', parts: [{ text: 'Wait' }] }
  ])
})

t.test('calls that nobody has answered yet get a result, too', async t => {
  t.match(contentsOf([user, calling(call('a', 'f'))]).at(-1), {
    role: 'user',
    parts: [{ functionResponse: { name: 'f' } }]
  })
})

t.test('ids that vendors use again in every turn find their own results', async t => {
  const contents = contentsOf([
    user,
    calling(call('1', 'f')),
    result('1', 'x'),
    calling(call('1', 'g')),
    result('1', 'y')
  ])
  t.same(
    contents.flatMap(({ parts }) => parts.flatMap(({ functionResponse: found }) => (found ? [found] : []))),
    [
      { id: '1', name: 'f', response: { output: 'x' } },
      { id: '1', name: 'g', response: { output: 'y' } }
    ]
  )
})

t.test('a result without a call, and a second one, are refused by their place', async t => {
  t.match(refusal({ messages: [user, result('a', 'x')] }), { statusCode: 400, param: 'messages[1].tool_call_id' })
  const twice = [user, calling(call('a', 'f')), result('a', 'x'), result('a', 'y')]
  t.match(refusal({ messages: twice }), { statusCode: 400, param: 'messages[3].tool_call_id' })
})

t.test('where calls have no ids, they go by their order', async t => {
  const { body } = translated({ messages: [user, calling(call('a', 'f')), result('a', 'x')] }, nothing, {
    callIds: false
  })
  t.strictSame(body.contents.slice(1), [
    { role: 'model', parts: [{ functionCall: { name: 'f', args: {} } }] },
    { role: 'user', parts: [{ functionResponse: { name: 'f', response: { output: 'x' } } }] }
  ])
})

t.test('arguments are an object whatever the model wrote', async t => {
  const argsOf = (text: string) => contentsOf([user, calling(call('a', 'f', text))])[1]?.parts[0]?.functionCall?.args
  t.same(argsOf(''), {})
  t.same(argsOf(' \n'), {})
  t.same(argsOf('[1,2]'), { arguments: [1, 2] })
  t.same(argsOf('null'), { arguments: null })
  t.same(argsOf('{"broken": '), { arguments: '{"broken": ' })
  t.equal(JSON.stringify(argsOf('{"__proto__": {"own": 1}}')), '{"__proto__":{"own":1}}')
})

t.test('legacy functions and custom tools of former turns are understood', async t => {
  const contents = contentsOf([
    user,
    { role: 'assistant', content: null, function_call: { name: 'f', arguments: '{"a":1}' } },
    { role: 'function', name: 'f', content: 'x' },
    calling({ id: 'c', type: 'custom', custom: { name: 'shell', input: 'ls' } }),
    result('c', 'files')
  ])
  t.strictSame(contents.slice(1), [
    { role: 'model', parts: [{ functionCall: { name: 'f', args: { a: 1 } } }] },
    { role: 'user', parts: [{ functionResponse: { name: 'f', response: { output: 'x' } } }] },
    { role: 'model', parts: [{ functionCall: { id: 'c', name: 'shell', args: { input: 'ls' } } }] },
    { role: 'user', parts: [{ functionResponse: { id: 'c', name: 'shell', response: { output: 'files' } } }] }
  ])
})

// Signatures

t.test('a signature that the client brings back goes where it was, and none is made up beside it', async t => {
  const own = { extra_content: { google: { thought_signature: 'SIG' } } }
  const contents = contentsOf(
    [user, calling(call('a', 'f', '{}', own), call('b', 'g')), result('a', 'x'), result('b', 'y')],
    nothing,
    'gemini-3-pro-preview'
  )
  t.strictSame(contents[1]?.parts, [
    { functionCall: { id: 'a', name: 'f', args: {} }, thoughtSignature: 'SIG' },
    { functionCall: { id: 'b', name: 'g', args: {} } }
  ])
})

t.test('a signature that the client drops is remembered', async t => {
  const known = { signatures: { find: (id: string) => (id === 'a' ? 'KEPT' : undefined) } }
  t.equal(contentsOf([user, calling(call('a', 'f'))], known)[1]?.parts[0]?.thoughtSignature, 'KEPT')
})

t.test('of the current turn every step has a signature, be it the one that asks for none', async t => {
  const history = [
    user,
    calling(call('a', 'f')),
    result('a', 'x'),
    { role: 'user' as const, content: 'Next' },
    calling(call('b', 'f'), call('c', 'f')),
    result('b', 'x'),
    result('c', 'x'),
    calling(call('d', 'f')),
    result('d', 'x')
  ]
  const signatures = (model: string) =>
    contentsOf(history, nothing, model).flatMap(({ parts }) =>
      parts.filter(part => part.functionCall).map(part => part.thoughtSignature)
    )
  t.same(signatures('gemini-3-flash-preview'), [undefined, skip, undefined, skip])
  t.same(signatures('gemini-flash-latest'), [undefined, skip, undefined, skip])
  t.same(signatures('gemini-2.5-flash'), [undefined, undefined, undefined, undefined], 'older models have none')
})

t.test('the signature of a text goes with the text, or alone', async t => {
  const own = { extra_content: { google: { thought_signature: 'TEXT' } } }
  const of = (content: string | null) => contentsOf([user, { role: 'assistant', content, ...own }])[1]?.parts
  t.strictSame(of('Hello'), [{ text: 'Hello', thoughtSignature: 'TEXT' }])
  t.strictSame(of(null), [{ text: '', thoughtSignature: 'TEXT' }])
})

// Parts

t.test('images, PDFs and sounds go as bytes', async t => {
  const content = [
    { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } },
    { type: 'image_url', image_url: 'DATA:image/JPEG;charset=x;BASE64,BBBB' },
    { type: 'image_url', image_url: { url: 'data:image/svg+xml,%3Csvg%3E' } },
    { type: 'file', file: { filename: 'a.pdf', file_data: 'data:application/pdf;base64,CCCC' } },
    { type: 'file', file: { file_data: 'DDDD' } },
    { type: 'file', file: { filename: 'B.CSV', file_data: 'EEEE' } },
    { type: 'input_audio', input_audio: { data: 'FFFF', format: 'wav' } },
    { type: 'input_audio', input_audio: { data: 'data:audio/mp3;base64,GGGG', format: 'mp3' } }
  ]
  const { body, warnings } = translated({ messages: [{ role: 'user', content }] })
  t.strictSame(
    body.contents[0]?.parts.map(({ inlineData }) => [inlineData?.mimeType, inlineData?.data]),
    [
      ['image/png', 'AAAA'],
      ['image/jpeg', 'BBBB'],
      ['image/svg+xml', Buffer.from('<svg>').toString('base64')],
      ['application/pdf', 'CCCC'],
      ['application/pdf', 'DDDD'],
      ['text/csv', 'EEEE'],
      ['audio/wav', 'FFFF'],
      ['audio/mp3', 'GGGG']
    ]
  )
  t.same(warnings, [])
})

t.test('links that the vendor reads by itself are handed on with a type', async t => {
  const image = (url: string) => ({ type: 'image_url', image_url: { url } })
  const content = [
    image('https://files.example/a.PNG?x=1.gif#y'),
    image('https://files.example/b'),
    { type: 'file', file: { file_data: 'https://files.example/c' } },
    { type: 'file', file: { file_id: 'https://files.example/files/d' } }
  ]
  t.strictSame(
    contentsOf([{ role: 'user', content }])[0]?.parts.map(part => part.fileData),
    [
      { fileUri: 'https://files.example/a.PNG?x=1.gif#y', mimeType: 'image/png' },
      { fileUri: 'https://files.example/b', mimeType: 'image/jpeg' },
      { fileUri: 'https://files.example/c', mimeType: 'application/pdf' },
      { fileUri: 'https://files.example/files/d' }
    ]
  )
})

t.test('other links are listed with their places, and sent as what was found there', async t => {
  const request: ChatRequest = {
    model: 'gemini-2.5-flash',
    messages: [
      { role: 'system', content: 'x' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'https://text.example' },
          { type: 'image_url', image_url: { url: 'https://a.example/x.png' } },
          { type: 'image_url', image_url: { url: 'https://files.example/own.png' } },
          { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } },
          { type: 'file', file: { file_data: 'HTTP://a.example/y.pdf' } }
        ]
      }
    ]
  }
  t.strictSame(linksOf(request, surface), [
    { url: 'https://a.example/x.png', kind: 'image', param: 'messages[1].content[1].image_url.url' },
    { url: 'HTTP://a.example/y.pdf', kind: 'pdf', param: 'messages[1].content[4].file.file_data' }
  ])
  const media = new Map([
    ['https://a.example/x.png', { mimeType: 'image/png', data: 'XXXX' }],
    ['HTTP://a.example/y.pdf', { mimeType: 'application/pdf', data: 'YYYY' }]
  ])
  const { parts = [] } = toGemini(request, surface, { ...nothing, media }).body.contents[0] ?? {}
  t.strictSame(
    [parts[1]?.inlineData, parts[4]?.inlineData],
    [
      { mimeType: 'image/png', data: 'XXXX' },
      { mimeType: 'application/pdf', data: 'YYYY' }
    ]
  )
})

t.test('what cannot be sent is refused by its place', async t => {
  const place = 'messages[0].content[0]'
  const refused: Array<[object, string, RegExp]> = [
    [{ type: 'image_url', image_url: { url: 'https://a.example/x' } }, `${place}.image_url.url`, /fetchMedia/],
    [{ type: 'image_url', image_url: { url: 'file:///etc/passwd' } }, `${place}.image_url.url`, /neither/],
    [{ type: 'image_url', image_url: { url: 'data:;base64,AAAA' } }, `${place}.image_url.url`, /type/],
    [{ type: 'image_url', image_url: { url: 'data:image/png,%E0%A4%A' } }, `${place}.image_url.url`, /cannot be read/],
    [{ type: 'file', file: { file_data: 'https://a.example/x.pdf' } }, `${place}.file.file_data`, /fetchMedia/],
    [{ type: 'file', file: { file_id: 'file-abc' } }, `${place}.file`, /file_data/],
    [{ type: 'file' }, `${place}.file`, /file_data/],
    [{ type: 'input_audio', input_audio: { data: 'AAAA', format: '../x' } }, `${place}.input_audio`, /format/],
    [{ type: 'input_audio' }, `${place}.input_audio`, /format/],
    [{ type: 'hologram' }, `${place}.type`, /hologram/]
  ]
  for (const [part, param, message] of refused) {
    t.match(refusal({ messages: [{ role: 'user', content: [part] }] }), { statusCode: 400, param, message })
  }
  const image = [{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } }]
  const inResult = [user, calling(call('a', 'f')), { role: 'tool', tool_call_id: 'a', content: image }]
  t.match(refusal({ messages: inResult }), { statusCode: 400, param: 'messages[2].content[0]' })
})

t.test('what only colours a part is left out with a word', async t => {
  const content = [{ type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA', detail: 'high' } }]
  t.same(translated({ messages: [{ role: 'user', name: 'bob', content }] }).warnings, [
    'Gemini does not take the names of users.',
    'Gemini does not take the detail of images.'
  ])
})

// Tools

const weather = { type: 'function', function: { name: 'weather', description: 'W', parameters: { type: 'object' } } }
const now = { type: 'function', function: { name: 'now', parameters: null } }

t.test('tools are declared with their own JSON Schema', async t => {
  const { body } = translated({ tools: [weather, now] })
  t.strictSame(body.tools, [
    {
      functionDeclarations: [
        { name: 'weather', description: 'W', parametersJsonSchema: { type: 'object' } },
        { name: 'now', description: '' }
      ]
    }
  ])
  t.equal(body.toolConfig, undefined)
})

t.test('the choice of tools', async t => {
  const tools = [weather, now]
  const chosen = (tool_choice: unknown, own: object[] = tools) =>
    translated({ tools: own, tool_choice }).body.toolConfig?.functionCallingConfig
  t.equal(chosen('auto'), undefined)
  t.equal(chosen(null), undefined)
  t.strictSame(chosen('none'), { mode: 'NONE' })
  t.strictSame(chosen('required'), { mode: 'ANY' })
  t.strictSame(chosen({ type: 'function', function: { name: 'now' } }), { mode: 'ANY', allowedFunctionNames: ['now'] })
  const allowed = (mode: string) => ({ type: 'allowed_tools', allowed_tools: { mode, tools: [now] } })
  t.strictSame(chosen(allowed('required')), { mode: 'ANY', allowedFunctionNames: ['now'] })
  t.strictSame(chosen(allowed('auto')), { mode: 'VALIDATED', allowedFunctionNames: ['now'] })
  const strict = [{ type: 'function', function: { ...weather.function, strict: true } }]
  t.strictSame(chosen('auto', strict), { mode: 'VALIDATED' })
  t.strictSame(chosen('none', strict), { mode: 'NONE' })
  for (const wrong of ['sometimes', { type: 'custom', custom: { name: 'x' } }, { type: 'function' }, 5]) {
    t.match(refusal({ tools, tool_choice: wrong }), { statusCode: 400, param: 'tool_choice' })
  }
})

t.test('a choice without tools is none', async t => {
  t.equal(translated({ tool_choice: 'none' }).body.toolConfig, undefined)
})

t.test('tools of other kinds and legacy functions are refused', async t => {
  t.match(refusal({ tools: [weather, { type: 'custom', custom: { name: 'x' } }] }), { param: 'tools[1]' })
  t.match(refusal({ functions: [{ name: 'f' }] }), { statusCode: 400, param: 'functions' })
})

// Settings

t.test('settings have their own names', async t => {
  t.strictSame(
    configOf({
      temperature: 0,
      top_p: 0.5,
      top_k: 40,
      seed: 7,
      max_tokens: 5,
      max_completion_tokens: 6,
      presence_penalty: 0.1,
      frequency_penalty: -0.1,
      n: 2,
      stop: ['a', '', 'b'],
      logprobs: true,
      top_logprobs: 3
    }),
    {
      temperature: 0,
      topP: 0.5,
      topK: 40,
      seed: 7,
      maxOutputTokens: 6,
      presencePenalty: 0.1,
      frequencyPenalty: -0.1,
      candidateCount: 2,
      stopSequences: ['a', 'b'],
      responseLogprobs: true,
      logprobs: 3
    }
  )
  t.strictSame(configOf({ max_tokens: 5, stop: 'x' }), { maxOutputTokens: 5, stopSequences: ['x'] })
})

t.test('null and defaults are not sent', async t => {
  const fields = ['temperature', 'top_p', 'seed', 'max_tokens', 'n', 'stop', 'tools', 'response_format', 'service_tier']
  const nulls = Object.fromEntries([...fields, 'reasoning_effort', 'logit_bias'].map(name => [name, null]))
  const { body, warnings } = translated({ ...nulls, presence_penalty: 0, frequency_penalty: 0, n: 1, stop: [] })
  t.strictSame(body, { contents: [{ role: 'user', parts: [{ text: 'Hi' }] }] })
  t.same(warnings, [])
})

t.test('what Gemini does not take is left out with one word about it', async t => {
  const { body, warnings } = translated({
    logit_bias: { 5: 1 },
    parallel_tool_calls: false,
    prediction: { type: 'content', content: 'x' },
    'bad\r\nname': 1,
    metadata: { a: 'b' },
    user: 'u',
    store: true,
    stream: true,
    stream_options: { include_usage: true }
  })
  t.same(warnings, ['Gemini does not take logit_bias, parallel_tool_calls, prediction, other fields.'])
  t.same(Object.keys(body), ['contents'])
  t.same(translated({ parallel_tool_calls: true, modalities: ['text'], service_tier: 'auto' }).warnings, [])
})

t.test('an answer in audio is refused', async t => {
  t.match(refusal({ modalities: ['text', 'audio'] }), { statusCode: 400, param: 'modalities' })
  t.match(refusal({ modalities: ['audio'], audio: { voice: 'x', format: 'wav' } }), { statusCode: 400, param: 'audio' })
})

t.test('service tiers have their own names, where there are any', async t => {
  const tier = (service_tier: string, serviceTier = true) => {
    const { body, warnings } = translated({ service_tier }, nothing, { serviceTier })
    return [body.serviceTier, warnings.length]
  }
  t.same(
    ['auto', 'default', 'flex', 'priority', 'scale'].map(name => tier(name)),
    [
      [undefined, 0],
      ['standard', 0],
      ['flex', 0],
      ['priority', 0],
      [undefined, 1]
    ]
  )
  t.same(tier('flex', false), [undefined, 1])
})

t.test('safety settings of the options are sent', async t => {
  const safetySettings = [{ category: 'HARM_CATEGORY_HARASSMENT', threshold: 'BLOCK_NONE' }]
  t.strictSame(translated({}, nothing, { safetySettings }).body.safetySettings, safetySettings)
  t.equal(translated({}, nothing, { safetySettings: [] }).body.safetySettings, undefined)
})

t.test('reasoning effort is a level for Gemini 3 and a budget for 2.5', async t => {
  const told = (model: string, reasoning_effort: string) => {
    const { body, warnings } = translated({ model, reasoning_effort })
    return [body.generationConfig?.['thinkingConfig'], warnings.length]
  }
  const level = (thinkingLevel: string, includeThoughts = true) => ({ includeThoughts, thinkingLevel })
  const budget = (thinkingBudget: number, includeThoughts = true) => ({ includeThoughts, thinkingBudget })
  t.strictSame(told('gemini-3-flash-preview', 'minimal'), [level('MINIMAL'), 0])
  t.strictSame(told('gemini-3-flash-preview', 'none'), [level('MINIMAL', false), 1])
  t.strictSame(told('gemini-3-flash-preview', 'medium'), [level('MEDIUM'), 0])
  t.strictSame(told('gemini-3.1-pro-preview', 'minimal'), [level('LOW'), 0], 'Pro has no MINIMAL')
  t.strictSame(told('gemini-3.8-flash', 'minimal'), [level('LOW'), 0])
  t.strictSame(told('gemini-3.5-flash-lite', 'minimal'), [level('MINIMAL'), 0])
  t.strictSame(told('models/gemini-4-argon', 'xhigh'), [level('HIGH'), 0])
  t.strictSame(told('gemini-2.5-flash', 'none'), [budget(0, false), 0])
  t.strictSame(told('gemini-2.5-flash', 'low'), [budget(1_024), 0])
  t.strictSame(told('gemini-2.5-flash', 'max'), [budget(24_576), 0])
  t.strictSame(told('gemini-2.5-pro', 'none'), [budget(128, false), 1], 'Pro always thinks')
  t.strictSame(told('gemini-2.5-pro', 'max'), [budget(32_768), 0])
  t.strictSame(told('gemini-3-pro-image-preview', 'high'), [budget(24_576), 0])
  t.strictSame(told('gemini-2.0-flash', 'high'), [undefined, 1])
  t.strictSame(told('gemma-3-27b-it', 'none'), [undefined, 0])
  t.match(refusal({ reasoning_effort: 'a bit' }), { statusCode: 400, param: 'reasoning_effort' })
})

// Structured output

const format = (schema?: object) => ({ type: 'json_schema', json_schema: { name: 'x', strict: true, schema } })

t.test('JSON is asked for', async t => {
  t.strictSame(configOf({ response_format: { type: 'json_object' } }), { responseMimeType: 'application/json' })
  t.strictSame(configOf({ response_format: format() }), { responseMimeType: 'application/json' })
  t.equal(configOf({ response_format: { type: 'text' } }), undefined)
  t.match(refusal({ response_format: { type: 'grammar' } }), { statusCode: 400, param: 'response_format' })
})

t.test('a schema keeps what Gemini takes, whatever its fields are called, and says what it does not', async t => {
  const schema = {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    type: 'object',
    additionalProperties: false,
    required: ['const', 'kind'],
    properties: {
      const: { type: 'string', minLength: 1, description: 'A field of that name' },
      kind: { const: 'a' },
      list: { type: 'array', minItems: 1, items: { anyOf: [{ $ref: '#/definitions/leaf' }, { type: 'null' }] } },
      pair: { prefixItems: [{ const: 1 }, true], items: false }
    },
    definitions: { leaf: { type: 'object', properties: { next: { $ref: '#/$defs/other' } }, patternProperties: {} } },
    $defs: { other: { enum: ['x', 'y'], pattern: '^x' } },
    allOf: [{ type: 'object' }]
  }
  const { body, warnings } = translated({ response_format: format(schema) })
  t.strictSame(body.generationConfig?.['responseJsonSchema'], {
    type: 'object',
    additionalProperties: false,
    required: ['const', 'kind'],
    properties: {
      const: { type: 'string', description: 'A field of that name' },
      kind: { enum: ['a'] },
      list: { type: 'array', minItems: 1, items: { anyOf: [{ $ref: '#/$defs/leaf' }, { type: 'null' }] } },
      pair: { prefixItems: [{ enum: [1] }, true], items: false }
    },
    $defs: {
      leaf: { type: 'object', properties: { next: { $ref: '#/$defs/other' } } },
      other: { enum: ['x', 'y'] }
    }
  })
  t.same(warnings, ['Gemini does not take these keywords of the schema: minLength, patternProperties, pattern, allOf.'])
})

t.test('a schema without a bottom is refused', async t => {
  let schema: object = { type: 'string' }
  for (let depth = 0; depth < 200; depth++) schema = { type: 'array', items: schema }
  t.match(refusal({ response_format: format(schema) }), {
    statusCode: 400,
    param: 'response_format.json_schema.schema'
  })
})

t.test("regression: words of JavaScript's own were found in tables of tiers, efforts and types", async t => {
  for (const word of ['constructor', '__proto__', 'toString']) {
    const { body, warnings } = translated({ service_tier: word })
    t.equal(body.serviceTier, undefined)
    t.strictSame(warnings, ['Gemini does not take service_tier.'])
    t.match(refusal({ reasoning_effort: word }), { param: 'reasoning_effort' })
    const file = { type: 'file', file: { file_data: 'JVBERi', filename: `a.${word}` } }
    const [content] = contentsOf([{ role: 'user', content: [file] }])
    t.equal(content?.parts[0]?.inlineData?.mimeType, 'application/pdf')
  }
})
