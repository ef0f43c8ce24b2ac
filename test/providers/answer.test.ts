import t from 'tap'
import { wholeAnswer } from '../../providers/wires/openai/answer.ts'
import { numbers } from '../schemas/helper.ts'

const usage = { prompt_tokens: 9, completion_tokens: 2, total_tokens: 11 }

function answered(body: string) {
  const raw = Buffer.from(body)
  const answer = wholeAnswer({ status: 200, headers: {}, body: raw, reads: null }, text => text)
  if (answer.stream) throw new Error('a stream')
  return answer
}

/** What parsing the whole body says. */
function reference(body: string): unknown {
  const found = JSON.parse(body).usage
  return typeof found === 'object' && found !== null ? found : null
}

const bodies: Array<[what: string, body: string]> = [
  ['at the end', JSON.stringify({ choices: [], usage })],
  ['before other fields', JSON.stringify({ usage, choices: [{ message: { content: 'x' } }], service_tier: null })],
  ['written with white space', JSON.stringify({ choices: [], usage, tier: [1] }, null, 2).replace(':', ' \t:\r\n')],
  ['with white space around the body', ` \n${JSON.stringify({ choices: [], usage })}\n\n`],
  ['null', JSON.stringify({ choices: [], usage: null })],
  ['absent', JSON.stringify({ choices: [] })],
  ['a word', JSON.stringify({ choices: [], usage: 'none' })],
  ['a list', JSON.stringify({ choices: [], usage: [1] })],
  ['empty', JSON.stringify({ choices: [], usage: {} })],
  ['only nested', JSON.stringify({ choices: [], x_groq: { usage } })],
  ['only nested in a list', JSON.stringify({ choices: [{ usage }] })],
  ['nested, then at the top', JSON.stringify({ x_groq: { usage: { prompt_tokens: 1 } }, usage })],
  ['at the top, then nested', JSON.stringify({ usage, x_groq: { usage: { prompt_tokens: 1 } } })],
  ['named twice', `{"usage":{"prompt_tokens":1},"usage":${JSON.stringify(usage)}}`],
  ['named twice, null at last', `{"usage":${JSON.stringify(usage)},"usage":null}`],
  ['the value of another field', JSON.stringify({ type: 'usage', object: 'usage', usage })],
  ['spoken of', JSON.stringify({ choices: [{ message: { content: '"usage":{"prompt_tokens":1}' } }] })],
  ['spoken of and reported', JSON.stringify({ choices: [{ message: { content: '\\"usage":{' } }], usage })],
  ['with brackets in its strings', JSON.stringify({ usage: { ...usage, note: '}]{["\\', more: [{ a: {} }] }, z: '}' })],
  ['far from the end', JSON.stringify({ usage, choices: [{ message: { content: '}"{'.repeat(100_000) } }] })]
]

for (const [what, body] of bodies) {
  t.test(`usage that is ${what} is what parsing finds`, async t => {
    t.strictSame(answered(body).usage, reference(body))
  })
}

t.test('usage is read without the body, and from the body once somebody has it', async t => {
  const answer = answered(JSON.stringify({ choices: [], usage }))
  t.strictSame(answer.usage, usage)
  t.equal(answer.usage, answer.usage, 'once')
  const other = answered(JSON.stringify({ choices: [], usage }))
  t.strictSame(other.body.usage, usage)
  t.equal(other.usage, other.body.usage)
})

t.test(
  'usage in a long body that is no JSON is taken where it stands whole, and is an error of the provider otherwise',
  async t => {
    const long = ' '.repeat(600)
    t.strictSame(answered(`{"choices":[oops],${long}"usage":${JSON.stringify(usage)}}`).usage, usage)
    t.throws(() => answered(`{"choices":[oops],"usage":${JSON.stringify(usage)}}`).usage, {
      code: 'GATEWAY_UPSTREAM_ERROR'
    })
    t.throws(() => answered('{"usage":{"prompt_tokens":1,}}').usage, { code: 'GATEWAY_UPSTREAM_ERROR' })
    t.throws(() => answered('{"usage":{"prompt_tokens":1}').usage, { code: 'GATEWAY_UPSTREAM_ERROR' })
  }
)

t.test('usage agrees with parsing on 20,000 random bodies', async t => {
  const random = numbers(23)
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!
  const texts = ['x', '"usage":{}', '"usage"', '\\', '\\"', '{', '}', 'usage', '東京', '"usage": {"a":1}}', '\u2028']
  const words = () => Array.from({ length: Math.floor(random() * 4) }, () => pick(texts)).join('')
  const value = (depth: number): unknown => {
    const kind = Math.floor(random() * (depth > 0 ? 6 : 4))
    if (kind === 0) return words()
    if (kind === 1) return pick([null, true, 1.5, -1e9])
    if (kind === 2) return usage
    if (kind === 3) return {}
    if (kind === 4) return Array.from({ length: Math.floor(random() * 3) }, () => value(depth - 1))
    return object(depth - 1)
  }
  const object = (depth: number) =>
    Object.fromEntries(
      Array.from({ length: Math.floor(random() * 4) }, () => [
        pick(['usage', 'a', '"usage"', '\\usage', 'choices', words()]),
        value(depth)
      ])
    )
  for (let round = 0; round < 20_000; round++) {
    const fields = {
      ...object(3),
      ...(random() < 0.7 && { usage: random() < 0.9 ? { ...usage, more: value(2) } : value(2) })
    }
    // Long enough to be searched, most of them: shorter bodies are parsed.
    const body = JSON.stringify({ ...fields, error: undefined }, null, pick([0, 0, 1])).padEnd(pick([0, 600, 600]))
    const found = answered(body).usage
    if (JSON.stringify(found) === JSON.stringify(reference(body))) continue
    t.strictSame(found, reference(body), body)
    return
  }
  t.pass('20,000 bodies')
})
