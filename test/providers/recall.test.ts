import t from 'tap'
import { createRecall } from '../../providers/recall.ts'

t.test('what was kept last is found, of one tenant only', async t => {
  const recall = createRecall<string>()
  recall.keep('a', 'call', 'first', 5)
  recall.keep('a', 'call', 'second', 6)
  t.equal(recall.find('a', 'call'), 'second')
  t.equal(recall.find('b', 'call'), undefined)
})

t.test('the oldest go when it is full', async t => {
  const recall = createRecall<string>(3_000)
  for (const call of ['one', 'two', 'three']) recall.keep('a', call, call, 1_000)
  t.equal(recall.find('a', 'one'), undefined)
  t.equal(recall.find('a', 'two'), 'two')
  t.equal(recall.find('a', 'three'), 'three')
})

t.test('what alone is too large is not kept, and puts nobody out', async t => {
  const recall = createRecall<string>(1_000)
  recall.keep('a', 'small', 'small', 5)
  recall.keep('a', 'large', 'large', 1_000)
  recall.keep('a', 'x'.repeat(257), 'long', 5)
  t.equal(recall.find('a', 'small'), 'small')
  t.equal(recall.find('a', 'large'), undefined)
  t.equal(recall.find('a', 'x'.repeat(257)), undefined)
})

t.test('regression: small values under many long ids took many times the bytes that were allowed', async t => {
  const recall = createRecall<string>(10_000)
  const id = (call: number) => `${call}`.padEnd(256, 'x')
  for (let call = 0; call < 1_000; call++) recall.keep('a', id(call), '', 0)
  const kept = Array.from({ length: 1_000 }, (_, call) => recall.find('a', id(call))).filter(value => value === '')
  t.ok(kept.length > 10 && kept.length * 256 < 10_000, `${kept.length} are kept`)
})
