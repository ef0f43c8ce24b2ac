import t from 'tap'
import { canonical } from '../../schemas/canonical.ts'

// The test vectors are RFC 8785's own.

function numberOf(bits: string): number {
  return Buffer.from(bits, 'hex').readDoubleBE()
}

t.test('section 3.2.2: literals, numbers and strings', async t => {
  const sample = JSON.parse(String.raw`{
    "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
    "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
    "literals": [null, true, false]
  }`)
  t.equal(
    canonical(sample),
    String.raw`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`
  )
})

t.test('section 3.2.3: fields in the order of their UTF-16 units', async t => {
  const sample = JSON.parse(String.raw`{
    "\u20ac": "Euro Sign",
    "\r": "Carriage Return",
    "\ufb33": "Hebrew Letter Dalet With Dagesh",
    "1": "One",
    "\ud83d\ude00": "Emoji: Grinning Face",
    "\u0080": "Control",
    "\u00f6": "Latin Small Letter O With Diaeresis"
  }`)
  t.strictSame(
    [...canonical(sample).matchAll(/:"([^"]*)"/g)].map(([, text]) => text),
    [
      'Carriage Return',
      'One',
      'Control',
      'Latin Small Letter O With Diaeresis',
      'Euro Sign',
      'Emoji: Grinning Face',
      'Hebrew Letter Dalet With Dagesh'
    ]
  )
})

t.test('appendix B: numbers by their bits', async t => {
  const samples = {
    '0000000000000000': '0',
    '8000000000000000': '0',
    '0000000000000001': '5e-324',
    '8000000000000001': '-5e-324',
    '7fefffffffffffff': '1.7976931348623157e+308',
    ffefffffffffffff: '-1.7976931348623157e+308',
    '4340000000000000': '9007199254740992',
    c340000000000000: '-9007199254740992',
    '4430000000000000': '295147905179352830000',
    '44b52d02c7e14af5': '9.999999999999997e+22',
    '44b52d02c7e14af6': '1e+23',
    '44b52d02c7e14af7': '1.0000000000000001e+23',
    '444b1ae4d6e2ef4e': '999999999999999700000',
    '444b1ae4d6e2ef4f': '999999999999999900000',
    '444b1ae4d6e2ef50': '1e+21',
    '3eb0c6f7a0b5ed8c': '9.999999999999997e-7',
    '3eb0c6f7a0b5ed8d': '0.000001',
    '41b3de4355555553': '333333333.3333332',
    '41b3de4355555554': '333333333.33333325',
    '41b3de4355555555': '333333333.3333333',
    '41b3de4355555556': '333333333.3333334',
    '41b3de4355555557': '333333333.33333343',
    becbf647612f3696: '-0.0000033333333333333333',
    '43143ff3c1cb0959': '1424953923781206.2'
  }
  for (const [bits, text] of Object.entries(samples)) t.equal(canonical(numberOf(bits)), text, bits)
  for (const bits of ['7fffffffffffffff', '7ff0000000000000', 'fff0000000000000']) {
    t.throws(() => canonical([numberOf(bits)]), TypeError, bits)
  }
})

t.test('what JSON.stringify makes of plain data, but for the order', async t => {
  const samples = [
    '{}',
    '[]',
    '[[],{},[{}]]',
    '"a\\u2028b/\\u007f\\u0000"',
    '[1,-1,1.5,1e-7,true,null]',
    '{"":{"a":[{"b":""}]}}'
  ]
  for (const sample of samples) t.equal(canonical(JSON.parse(sample)), JSON.stringify(JSON.parse(sample)), sample)
})

t.test('names that look like numbers come in the order of texts, and __proto__ is a name', async t => {
  t.equal(canonical(JSON.parse('{"9":1,"10":2,"__proto__":3,"B":4,"a":5}')), '{"10":2,"9":1,"B":4,"__proto__":3,"a":5}')
})

t.test('many fields are in the same order as few', async t => {
  const names = Array.from({ length: 200 }, (_, index) => `n${(index * 7919) % 200}`)
  const fields = Object.fromEntries(names.map(name => [name, 0]))
  t.equal(canonical(fields), `{${names.sort().map(name => `"${name}":0`)}}`)
})

t.test('half of a surrogate pair is escaped, a whole one is not', async t => {
  t.equal(canonical({ '\ud83d': '\ude00 \ud83d\ude00' }), '{"\\ud83d":"\\ude00 😀"}')
})

t.test('what is no JSON is left out or null, as by JSON.stringify', async t => {
  const symbol = Symbol('no')
  t.equal(canonical({ b: undefined, a: 1, c: () => 1, d: symbol }), '{"a":1}')
  t.equal(canonical([undefined, () => 1, symbol]), '[null,null,null]')
  t.equal(canonical({ time: new Date(0), toJSON: 'a name' }), '{"time":"1970-01-01T00:00:00.000Z","toJSON":"a name"}')
})

t.test('what is nested too deeply is refused with a RangeError', async t => {
  t.throws(() => canonical(JSON.parse('['.repeat(100_000) + ']'.repeat(100_000))), RangeError)
})

t.test('more names than are remembered are written all the same', async t => {
  for (let index = 0; index < 3_000; index++) {
    const name = `name ${index} "${'x'.repeat(index % 100)}"`
    const expected = JSON.stringify({ a: 1, [name]: 2 })
    if (canonical({ [name]: 2, a: 1 }) !== expected) t.fail(name)
  }
})
