import t from 'tap'
import { endOf, type Period, periodKey, periods, startOf } from '../../schemas/periods.ts'
import { numbers } from './helper.ts'

const at = (text: string) => Date.parse(text)

const keys: Array<[moment: string, hour: string, day: string, week: string, month: string]> = [
  ['2026-11-21T13:59:59.999Z', '2026-11-21T13', '2026-11-21', '2026-11-16', '2026-11'],
  ['2026-11-21T14:00:00.000Z', '2026-11-21T14', '2026-11-21', '2026-11-16', '2026-11'],
  ['2026-11-22T23:59:59.999Z', '2026-11-22T23', '2026-11-22', '2026-11-16', '2026-11'],
  ['2026-11-23T00:00:00.000Z', '2026-11-23T00', '2026-11-23', '2026-11-23', '2026-11'],
  ['2026-12-31T23:59:59.999Z', '2026-12-31T23', '2026-12-31', '2026-12-28', '2026-12'],
  ['2027-01-01T00:00:00.000Z', '2027-01-01T00', '2027-01-01', '2026-12-28', '2027-01'],
  ['2028-02-28T23:59:59.999Z', '2028-02-28T23', '2028-02-28', '2028-02-28', '2028-02'],
  ['2028-02-29T00:00:00.000Z', '2028-02-29T00', '2028-02-29', '2028-02-28', '2028-02'],
  ['2028-03-01T00:00:00.000Z', '2028-03-01T00', '2028-03-01', '2028-02-28', '2028-03'],
  ['2100-02-28T23:59:59.999Z', '2100-02-28T23', '2100-02-28', '2100-02-22', '2100-02'],
  ['2100-03-01T00:00:00.000Z', '2100-03-01T00', '2100-03-01', '2100-03-01', '2100-03'],
  ['1970-01-01T00:00:00.000Z', '1970-01-01T00', '1970-01-01', '1969-12-29', '1970-01']
]

for (const [moment, hour, day, week, month] of keys) {
  t.test(`${moment} lies in hour ${hour}, day ${day}, week ${week} and month ${month}`, async t => {
    const named = {
      total: 'total',
      hour: `hour:${hour}`,
      day: `day:${day}`,
      week: `week:${week}`,
      month: `month:${month}`
    }
    for (const period of periods) t.equal(periodKey(period, at(moment)), named[period])
  })
}

t.test('the total never ends', async t => {
  t.equal(startOf('total', at('2026-11-21T00:00:00Z')), 0)
  t.equal(endOf('total', at('2026-11-21T00:00:00Z')), Number.POSITIVE_INFINITY)
})

t.test('a period ends where the next one begins', async t => {
  const ends: Array<[Period, string, string]> = [
    ['hour', '2026-12-31T23:10:00Z', '2027-01-01T00:00:00Z'],
    ['day', '2028-02-28T12:00:00Z', '2028-02-29T00:00:00Z'],
    ['week', '2026-12-30T12:00:00Z', '2027-01-04T00:00:00Z'],
    ['month', '2028-02-10T12:00:00Z', '2028-03-01T00:00:00Z'],
    ['month', '2026-12-10T12:00:00Z', '2027-01-01T00:00:00Z']
  ]
  for (const [period, moment, end] of ends) t.equal(endOf(period, at(moment)), at(end), `${period} of ${moment}`)
})

t.test('every moment lies in its period, and the periods are one after another', async t => {
  const random = numbers(3)
  const [from, to] = [at('1971-01-01T00:00:00Z'), at('2105-01-01T00:00:00Z')]
  for (let round = 0; round < 5_000; round++) {
    const time = Math.floor(from + random() * (to - from))
    for (const period of ['hour', 'day', 'week', 'month'] as const) {
      const [start, end] = [startOf(period, time), endOf(period, time)]
      const key = periodKey(period, time)
      const inside = start <= time && time < end && startOf(period, start) === start && startOf(period, end) === end
      const named = periodKey(period, start) === key && periodKey(period, end - 1) === key
      const apart = periodKey(period, end) > key && periodKey(period, start - 1) < key
      if (!inside || !named || !apart) t.fail(`${period} of ${new Date(time).toISOString()}`)
    }
    if (new Date(startOf('week', time)).getUTCDay() !== 1) t.fail('a week that begins on another day')
  }
})
