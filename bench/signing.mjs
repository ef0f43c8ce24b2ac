// What signing costs: `node bench/signing.mjs`. One thread, no network: the stage `seal` around an answer of about 1 kB, its
// parsing included, and around a stream of text, one event a read and many a read. CPU time, medians of rounds.

import { generateKeyPairSync } from 'node:crypto'
import { macOf } from '../plugins/signing/mac.ts'
import { createReceipts } from '../plugins/signing/receipt.ts'
import { SignedStream } from '../plugins/signing/stream.ts'
import { SignedWhole } from '../plugins/signing/whole.ts'
import { eventReader } from '../providers/sse/index.ts'

const rounds = 15
const chunks = 200
const mac = macOf('0123456789abcdef'.repeat(4))
const head = { id: 'chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT', created: 1_741_569_952, model: 'gpt-4.1-2025-04-14' }
const details = { accepted_prediction_tokens: 0, audio_tokens: 0, reasoning_tokens: 0, rejected_prediction_tokens: 0 }
const answer = {
  ...head,
  object: 'chat.completion',
  choices: [
    {
      index: 0,
      message: {
        role: 'assistant',
        content: 'It is 21 °C, "clear".\n'.repeat(15),
        refusal: null,
        annotations: []
      },
      logprobs: null,
      finish_reason: 'stop'
    }
  ],
  usage: {
    prompt_tokens: 19,
    completion_tokens: 210,
    total_tokens: 229,
    prompt_tokens_details: { cached_tokens: 0, audio_tokens: 0 },
    completion_tokens_details: details
  },
  service_tier: 'default',
  system_fingerprint: 'fp_44709d6fcb'
}
const words = ['Hello', ' there', ', this', ' is', ' a', ' "quoted"', ' answer', ' from', ' Zürich', '.\n']
/** Chunks of a stream; `like` one another but for their text, or each with a number of its own besides. */
const eventsOf = like =>
  Array.from({ length: chunks }, (_, index) => {
    const choice = { index: 0, delta: { content: words[index % words.length] }, logprobs: null, finish_reason: null }
    const chunk = {
      ...head,
      object: 'chat.completion.chunk',
      service_tier: 'default',
      system_fingerprint: 'fp_44709d6fcb'
    }
    const more = { usage: null, obfuscation: 'aBc12', ...(!like && { number: index }) }
    return Buffer.from(`data: ${JSON.stringify({ ...chunk, choices: [choice], ...more })}\n\n`)
  })
const raw = Buffer.from(JSON.stringify(answer))

const inference = {
  id: 'req_1',
  started: 0,
  principal: { tenant: 'acme' },
  route: { alias: 'chat', config: 'abc' },
  facts: { target: { provider: { name: 'openai' }, model: 'gpt-4.1' } },
  expenses: [],
  request: { model: 'chat', messages: [{ role: 'user', content: 'What is the weather like in Zürich?' }] }
}
const { privateKey } = generateKeyPairSync('ed25519')
const receipts = createReceipts(
  { privateKey: privateKey.export({ format: 'pem', type: 'pkcs8' }) },
  { pricing: undefined },
  Date.now
)

/** Microseconds of this thread for each of `count` units that one run does. */
async function cost(run, count, runs) {
  const times = []
  for (let round = 0; round < rounds + 3; round++) {
    const before = process.threadCpuUsage()
    for (let index = 0; index < runs; index++) {
      const running = run()
      if (running !== undefined) await running
    }
    const { user, system } = process.threadCpuUsage(before)
    if (round >= 3) times.push((user + system) / runs / count)
  }
  return times.sort((a, b) => a - b)[rounds >> 1]
}

/** As a provider gives it: parsed by whoever looks first. */
class Given {
  stream = false
  raw = raw
  usage = null
  get body() {
    return JSON.parse(raw.toString())
  }
}

function whole() {
  if (new SignedWhole(new Given(), mac).raw.length < raw.length) throw new Error('nothing was signed')
}

function readsOf(events, perRead) {
  const reads = []
  for (let at = 0; at < events.length; at += perRead) reads.push(Buffer.concat(events.slice(at, at + perRead)))
  return reads
}

async function* framesOf(reads) {
  const reader = eventReader(8_388_608)
  for (const bytes of reads) yield reader.read(bytes).frames
}

async function streamed(frames) {
  let size = 0
  for await (const { raw } of frames) size += raw.length
  if (size === 0) throw new Error('nothing was streamed')
}

const show = (name, microseconds) => console.log(`${name} ${microseconds.toFixed(2)} µs`)
show(`signed answer, ${raw.length} bytes`, await cost(whole, 1, 2_000))
for (const [name, perRead, like] of [
  ['signed chunk, one a read', 1, true],
  ['signed chunk, twenty a read', 20, true],
  ['signed chunk unlike the others, one a read', 1, false]
]) {
  const reads = readsOf(eventsOf(like), perRead)
  const bare = await cost(() => streamed(framesOf(reads)), chunks, 60)
  const signed = await cost(() => streamed(new SignedStream(inference, framesOf(reads), mac, null)), chunks, 60)
  show(name, signed - bare)
}
show('receipt', await cost(() => void receipts.begin(inference).issue('0'.repeat(64), 'gpt-4.1'), 1, 400))
