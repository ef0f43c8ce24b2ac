import t from 'tap'
import { mostNano, nanoOf, picoOf, usdOf, usdText } from '../../schemas/money.ts'
import { numbers } from './helper.ts'

const nanos: Array<[usd: number | string, nano: number]> = [
  [0, 0],
  [-0, 0],
  [1, 1_000_000_000],
  [0.1, 100_000_000],
  [0.3, 300_000_000],
  [1e-9, 1],
  [4.9e-10, 0],
  [5e-10, 1],
  [1.4999999995, 1_500_000_000],
  ['1.4999999994', 1_499_999_999],
  ['0.0000000005', 1],
  ['0.00000000049999999999999999999999', 0],
  [5e-324, 0],
  ['1e-999', 0],
  ['.5', 500_000_000],
  ['5.', 5_000_000_000],
  ['007', 7_000_000_000],
  [' 2.5E-1 ', 250_000_000],
  ['1e+2', 100_000_000_000],
  ['12.34e1', 123_400_000_000],
  ['12.34e-1', 1_234_000_000],
  [9_000_000, mostNano],
  ['9007199.254740991', Number.MAX_SAFE_INTEGER]
]

for (const [usd, nano] of nanos) {
  t.test(`${JSON.stringify(usd)} USD are ${nano} nano-USD`, async t => {
    t.equal(nanoOf(usd), nano)
  })
}

const refused = [
  '',
  ' ',
  '.',
  'e5',
  '-1',
  '-0',
  '+1',
  '1,5',
  '1_000',
  '0x10',
  'NaN',
  'Infinity',
  '1e1000',
  '1e400',
  '1 2',
  '１'
]
for (const amount of [...refused, -1, -1e-9, Number.NaN, Number.POSITIVE_INFINITY, 1e300, 1e21, 9_007_199.3]) {
  t.test(`${JSON.stringify(amount)} (${amount}) is refused`, async t => {
    t.throws(() => nanoOf(amount), RangeError)
  })
}

t.test('a refusal does not repeat more than the beginning of what it refuses', async t => {
  t.throws(() => nanoOf('x'.repeat(100_000)), { message: /^.{0,100}$/ })
  t.throws(() => nanoOf('9'.repeat(100_000)), { message: /^.{0,100}$/ })
})

t.test('prices per million tokens are pico-USD per token', async t => {
  t.equal(picoOf(3), 3_000_000)
  t.equal(picoOf(0.15), 150_000)
  t.equal(picoOf(0.0025), 2_500)
  t.equal(picoOf('0.0000005'), 1)
  t.equal(picoOf(0.00000049), 0)
  t.equal(picoOf(0.07 * 3), 210_000, 'a float that is a little off')
  t.throws(() => picoOf(1e10), RangeError)
})

t.test('nano-USD survive the way to USD and back', async t => {
  const random = numbers(5)
  for (let round = 0; round < 20_000; round++) {
    const nano = Math.floor(random() * 8e15 * 10 ** -Math.floor(random() * 16))
    if (nanoOf(usdOf(nano)) !== nano || nanoOf(usdText(nano)) !== nano) t.fail(`${nano}`)
    if (Number(usdText(nano)) !== usdOf(nano)) t.fail(`${nano} as text`)
  }
  for (const nano of [mostNano, Number.MAX_SAFE_INTEGER]) t.equal(nanoOf(usdText(nano)), nano)
})

t.test('rounding is half up of the decimal text, checked against integers', async t => {
  const random = numbers(6)
  for (let round = 0; round < 20_000; round++) {
    const digits = BigInt(Math.floor(random() * 1e15))
    const places = 6 + Math.floor(random() * 12)
    const shown = String(digits).padStart(places + 1, '0')
    const scale = 10n ** BigInt(places)
    const expected = Number((digits * 2_000_000n + scale) / (2n * scale))
    for (const text of [`${shown.slice(0, -places)}.${shown.slice(-places)}`, `${digits}e-${places}`]) {
      if (picoOf(text) !== expected) t.fail(`${text}: ${picoOf(text)} instead of ${expected}`)
    }
  }
})

t.test('texts have no exponent, no trailing zeros, and the sign', async t => {
  const texts: Array<[nano: number | bigint, text: string]> = [
    [0, '0'],
    [-0, '0'],
    [1, '0.000000001'],
    [450_000, '0.00045'],
    [1_500_000_000, '1.5'],
    [2_000_000_000, '2'],
    [-1, '-0.000000001'],
    [-2_500_000_000n, '-2.5'],
    [123_456_789_012_345_678_901n, '123456789012.345678901'],
    [Number.MAX_SAFE_INTEGER, '9007199.254740991']
  ]
  for (const [nano, text] of texts) t.equal(usdText(nano), text)
})

t.test('USD are the number nearest to their text', async t => {
  t.equal(usdOf(1), 1e-9)
  t.equal(usdOf(300_000_000), 0.3)
  t.equal(usdOf(-2_500_000_000n), -2.5)
  t.equal(usdOf(123_456_789_012_345_678_901n), Number('123456789012.345678901'))
})
