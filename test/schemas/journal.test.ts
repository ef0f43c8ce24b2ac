import t from 'tap'
import { decode, encodeAttempt, encodeOpen, encodeSettle, type OpenLine, type OpenText } from '../../schemas/journal.ts'
import { noUsage } from '../../schemas/usage.ts'

const attempt = {
  number: 1,
  provider: 'up',
  model: 'gpt-4o',
  priceVersion: 'config',
  input: 12,
  output: 1_000,
  cost: 99
}
const open: OpenText = {
  id: 'req_1',
  time: 1_795_000_000_000,
  tenant: 'acme',
  key: 'k1',
  model: 'chat',
  stream: true,
  user: 'somebody',
  tags: '{"team":"red"}',
  traceId: '0af7651916cd43dd8448eb211c80319c',
  charges: '[["tenant:acme","day:2026-11-21"]]',
  attempt,
  config: '0123456789ab'
}
const usage = { ...noUsage, input: 10, output: 5, source: 'reported' as const }
const end = {
  number: 1,
  status: 'settled' as const,
  errorCode: null,
  duration: 12.5,
  firstToken: 3.25,
  cost: 7,
  usage
}
const settle = {
  id: 'req_1',
  status: 'settled' as const,
  httpStatus: 200,
  errorCode: null,
  duration: 13,
  firstToken: null
}

t.test('what is written is read again', async t => {
  const line: OpenLine = {
    ...open,
    kind: 'open',
    tags: { team: 'red' },
    charges: [['tenant:acme', 'day:2026-11-21']]
  }
  t.strictSame(decode(encodeOpen(open)), line)
  const further = { id: 'req_1', before: end, attempt: { ...attempt, number: 2, cost: null, priceVersion: null } }
  t.strictSame(decode(encodeAttempt(further)), { kind: 'attempt', ...further })
  const ends = [{ ...end, status: 'failed' as const, errorCode: 'upstream_error' }, end]
  t.strictSame(decode(encodeSettle({ ...settle, attempts: ends })), { kind: 'settle', ...settle, attempts: ends })
})

t.test('a line of a gateway that did not write its configuration down is read', async t => {
  const line = encodeOpen(open).replace(',"0123456789ab"]\n', ']\n')
  t.match(line, /\]\]\n$/)
  t.match(decode(line), { kind: 'open', id: 'req_1', config: null })
  t.match(decode(encodeOpen({ ...open, config: null })), { config: null })
  t.equal(decode(encodeOpen(open).replace('"0123456789ab"', '7')), null)
})

t.test('every bucket of a usage is kept', async t => {
  const full = {
    input: 1,
    cacheRead: 2,
    cacheWrite5m: 3,
    cacheWrite1h: 4,
    audioInput: 5,
    output: 6,
    reasoning: 7,
    audioOutput: 8,
    source: 'reported' as const,
    charge: 9,
    mismatch: true
  }
  t.match(decode(encodeSettle({ ...settle, attempts: [{ ...end, usage: full }] })), { attempts: [{ usage: full }] })
})

t.test('a line is one line, whatever stands in it', async t => {
  const odd = 'a"b\\c\nd\r\u2028\u0000\ud800é'
  const text = encodeOpen({ ...open, id: odd, tenant: odd, key: odd, model: odd, user: odd, traceId: odd })
  t.equal(text.indexOf('\n'), text.length - 1)
  t.match(decode(text), { id: odd, tenant: odd, key: odd, model: odd, user: odd, traceId: odd })
})

t.test('numbers that are none are written as what can be counted', async t => {
  const numbers = { input: Number.NaN, output: Number.POSITIVE_INFINITY, cost: -1 }
  t.match(decode(encodeOpen({ ...open, attempt: { ...attempt, ...numbers } })), {
    attempt: { input: 0, output: 10_000_000_000, cost: 0 }
  })
  const wild = { ...usage, input: 1e300, output: 1.5 }
  const line = encodeSettle({ ...settle, duration: Number.NaN, attempts: [{ ...end, cost: 1e300, usage: wild }] })
  t.match(decode(line), {
    duration: 0,
    attempts: [{ cost: 2 ** 52, usage: { input: 10_000_000_000, output: 2 } }]
  })
})

t.test('names from outside are cut', async t => {
  t.match(decode(encodeOpen({ ...open, model: 'm'.repeat(10_000) })), { model: 'm'.repeat(256) })
})

t.test('damaged lines are null', async t => {
  const lines = [encodeOpen(open), encodeSettle({ ...settle, attempts: [end] })]
  for (const line of lines) {
    for (let length = 0; length < line.length - 1; length++) t.equal(decode(line.slice(0, length)), null)
    t.equal(decode(line.replace('"req_1"', '1')), null)
  }
  t.equal(decode('["x","req_1"]'), null)
  t.equal(decode('null'), null)
  t.equal(decode('["s","req_1",9,200,null,1,null,[]]'), null, 'a status that nobody knows')
  t.equal(decode('["s","req_1",1,200,null,1,null,[[1,1,null,1,null,1.5,[1,1,1]]]]'), null, 'half a nano-dollar')
})
