import { Value } from '@sinclair/typebox/value'
import t from 'tap'
import { Delay, Duration, Size, Timeout } from '../../schemas/duration.ts'

const decode = (schema: typeof Duration, written: unknown) => Value.Decode(schema, written)

t.test('a duration has a unit or is a number of milliseconds', async t => {
  const cases: Array<[unknown, number]> = [
    ['250ms', 250],
    ['5s', 5000],
    ['10m', 600_000],
    ['24h', 86_400_000],
    ['90d', 7_776_000_000],
    ['1.5s', 1500],
    ['0ms', 0],
    ['007s', 7000],
    ['5S', 5000],
    [0, 0],
    [1234, 1234]
  ]
  for (const [written, milliseconds] of cases) t.equal(decode(Duration, written), milliseconds, String(written))
})

t.test('a duration that says no time is refused', async t => {
  const bad = [
    '',
    '5',
    's',
    '-5s',
    '+5s',
    '5 s',
    ' 5s',
    '5s ',
    '5sec',
    '5s5',
    '1e3s',
    '.5s',
    '5.s',
    '1h30m',
    'NaN',
    '∞s',
    '5μs'
  ]
  for (const written of bad) t.throws(() => decode(Duration, written), written)
  for (const written of [-1, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60, null, true, [], {}]) {
    t.throws(() => decode(Duration, written), String(written))
  }
})

t.test('a duration too long to be counted is refused', async t => {
  t.throws(() => decode(Duration, `${'9'.repeat(400)}d`))
})

t.test('a timeout is at least a millisecond, a delay may be nothing', async t => {
  t.equal(decode(Delay, '0ms'), 0)
  t.equal(decode(Delay, 0), 0)
  t.equal(decode(Timeout, '1ms'), 1)
  t.throws(() => decode(Timeout, '0ms'))
  t.throws(() => decode(Timeout, '0.4ms'))
  t.throws(() => decode(Timeout, 0))
})

t.test('a timer is never longer than Node can wait', async t => {
  t.equal(decode(Timeout, '24d'), 2_073_600_000)
  t.equal(decode(Delay, 2 ** 31 - 1), 2 ** 31 - 1)
  for (const schema of [Delay, Timeout]) {
    t.throws(() => decode(schema, '25d'))
    t.throws(() => decode(schema, 2 ** 31))
  }
})

t.test('a size has a unit or is a number of bytes', async t => {
  const cases: Array<[unknown, number]> = [
    ['512b', 512],
    ['512kb', 524_288],
    ['10mb', 10_485_760],
    ['10MB', 10_485_760],
    ['1gb', 1_073_741_824],
    ['1.5kb', 1536],
    [1, 1]
  ]
  for (const [written, bytes] of cases) t.equal(decode(Size, written), bytes, String(written))
})

t.test('a size that says no bytes is refused', async t => {
  for (const written of ['', '10', 'mb', '10 mb', '-1mb', '10m', '10kib', '0mb', 0, -1, 1.5, null, {}]) {
    t.throws(() => decode(Size, written), String(written))
  }
})
