import t from 'tap'
import { createRecent } from '../../schemas/recent.ts'

t.test('it keeps what was used last and forgets the rest', async t => {
  const recent = createRecent<number>(10)
  for (let n = 0; n < 1_000; n++) {
    recent.set(`n${n}`, n)
    recent.get('n0')
  }
  t.equal(recent.get('n0'), 0, 'used all the time')
  for (let n = 991; n < 1_000; n++) t.equal(recent.get(`n${n}`), n)
  t.equal(recent.get('n900'), undefined)
})

t.test('it never holds more than twice its limit', async t => {
  const recent = createRecent<number>(10)
  for (let n = 0; n < 1_000; n++) {
    recent.set(`n${n}`, n)
    t.ok([...recent.entries()].length <= 20)
  }
})

t.test('what is deleted or cleared is gone from both generations', async t => {
  const recent = createRecent<number>(3)
  for (const id of ['a', 'b', 'c', 'd']) recent.set(id, 1)
  recent.get('a')
  recent.delete('a')
  recent.delete('b')
  t.same([...recent.entries()].map(([id]) => id).sort(), ['c', 'd'])
  t.equal(recent.get('a'), undefined)
  recent.clear()
  t.same([...recent.entries()], [])
})

t.test('an entry that stands in both generations is listed once, as it is now', async t => {
  const recent = createRecent<number>(2)
  recent.set('a', 1)
  recent.set('b', 1)
  recent.set('a', 2)
  t.same([...recent.entries()].sort(), [
    ['a', 2],
    ['b', 1]
  ])
})
