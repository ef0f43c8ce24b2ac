import type { FastifyInstance } from 'fastify'

// A strict reader of the text format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/

export interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

export interface Family {
  readonly name: string
  readonly help: string
  readonly type: 'counter' | 'gauge' | 'histogram'
  readonly samples: Sample[]
}

const name = /[a-zA-Z_:][a-zA-Z0-9_:]*/y
const labelName = /[a-zA-Z_][a-zA-Z0-9_]*/y
const labelValue = /"((?:[^"\\\n]|\\["\\n])*)"/y
const number = /[+-]?(?:Inf|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=$)/y
const types = ['counter', 'gauge', 'histogram'] as const
const suffixes = ['_bucket', '_sum', '_count']

/** @throws Error that says what is wrong with which line */
export function parse(text: string): Map<string, Family> {
  const families = new Map<string, Family>()
  const seen = new Set<string>()
  let help: { name: string; help: string } | null = null
  let family: Family | null = null
  if (!text.endsWith('\n')) throw new Error('The last line does not end.')
  text
    .slice(0, -1)
    .split('\n')
    .forEach((line, index) => {
      const fault = (what: string) => new Error(`line ${index + 1}: ${what}: ${line}`)
      if (line === '') return
      if (line.startsWith('# HELP ')) {
        const [, of = '', words = ''] = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line) ?? []
        if (of === '' || /\\(?![\\n])/.test(words)) throw fault('no HELP')
        if (families.has(of)) throw fault('a family comes twice')
        help = { name: of, help: words }
        family = null
      } else if (line.startsWith('#')) {
        const [, of, kind] = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (\w+)$/.exec(line) ?? []
        const type = types.find(one => one === kind)
        if (type === undefined || help?.name !== of || help === null) throw fault('no TYPE that follows its HELP')
        if (type === 'counter' && !help.name.endsWith('_total')) throw fault('a counter is called _total')
        family = { ...help, type, samples: [] }
        families.set(family.name, family)
        help = null
      } else {
        if (family === null) throw fault('a sample without a family')
        const sample = sampleOf(line, fault)
        const own = family.type === 'histogram' ? suffixes.map(suffix => family?.name + suffix) : [family.name]
        if (!own.includes(sample.name)) throw fault(`not of ${family.name}`)
        if (family.type !== 'gauge' && !(sample.value >= 0)) throw fault('a count below zero')
        const id = keyOf(sample)
        if (seen.has(id)) throw fault('a series comes twice')
        seen.add(id)
        family.samples.push(sample)
      }
    })
  if (help !== null) throw new Error('The last HELP has no TYPE.')
  for (const family of families.values()) if (family.type === 'histogram') checkHistogram(family)
  return families
}

function sampleOf(line: string, fault: (what: string) => Error): Sample {
  let at = 0
  const take = (pattern: RegExp, what: string): string => {
    pattern.lastIndex = at
    const found = pattern.exec(line)
    if (found === null) throw fault(`no ${what} at ${at}`)
    at = pattern.lastIndex
    return found[1] ?? found[0]
  }
  const of = take(name, 'name')
  const labels: Record<string, string> = {}
  if (line[at] === '{') {
    do {
      at++
      const label = take(labelName, 'label')
      if (label in labels) throw fault('a label comes twice')
      if (line[at++] !== '=') throw fault('no =')
      labels[label] = take(labelValue, 'value of a label').replace(/\\(.)/g, (_, c) => (c === 'n' ? '\n' : c))
    } while (line[at] === ',')
    if (line[at++] !== '}') throw fault('no }')
  }
  if (line[at++] !== ' ') throw fault('no space')
  return { name: of, labels, value: Number(take(number, 'number').replace('Inf', 'Infinity')) }
}

export function keyOf({ name, labels }: Pick<Sample, 'name' | 'labels'>): string {
  return JSON.stringify([name, Object.entries(labels).sort(([one], [other]) => (one < other ? -1 : 1))])
}

/** Buckets rise by their bound and in their count, the last one is everything, and sum and count are there. */
function checkHistogram({ name, samples }: Family): void {
  const groups = new Map<string, { buckets: Array<[number, number]>; sum?: number; count?: number }>()
  for (const { name: of, labels, value } of samples) {
    const { le, ...rest } = labels
    const key = keyOf({ name, labels: rest })
    const group = groups.get(key) ?? { buckets: [] }
    groups.set(key, group)
    if (of.endsWith('_bucket')) {
      if (le === undefined) throw new Error(`${key}: a bucket without le`)
      group.buckets.push([Number(le.replace('Inf', 'Infinity')), value])
    } else if (of.endsWith('_sum')) group.sum = value
    else group.count = value
  }
  for (const [key, { buckets, sum, count }] of groups) {
    buckets.forEach(([le, value], index) => {
      const [before = Number.NEGATIVE_INFINITY, least = 0] = buckets[index - 1] ?? []
      if (!(le > before)) throw new Error(`${key}: the bound ${le} follows ${before}`)
      if (value < least) throw new Error(`${key}: ${value} are at most ${le}, ${least} at most ${before}`)
    })
    const [last, all] = buckets.at(-1) ?? []
    if (last !== Number.POSITIVE_INFINITY || all !== count) throw new Error(`${key}: the last bucket is not everything`)
    if (sum === undefined || (count === 0 && sum !== 0)) throw new Error(`${key}: the sum ${sum} of ${count}`)
  }
}

/** A scrape, read strictly. */
export interface Scrape {
  readonly text: string
  readonly families: ReadonlyMap<string, Family>
  /** The sum of the series of a name that have these labels; undefined where there is none. */
  value(name: string, labels?: Readonly<Record<string, string>>): number | undefined
  /** The values of a label of all series of a name. */
  labels(name: string, label: string): string[]
}

export async function scrape(app: FastifyInstance): Promise<Scrape> {
  const text = await (app.gateway.metrics ?? none()).registry.metrics()
  return read(text)
}

export function read(text: string): Scrape {
  const families = parse(text)
  const all = [...families.values()].flatMap(({ samples }) => samples)
  return {
    text,
    families,
    value(name, labels = {}) {
      const found = all.filter(sample => {
        return sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value)
      })
      return found.length === 0 ? undefined : found.reduce((sum, { value }) => sum + value, 0)
    },
    labels: (name, label) =>
      [...new Set(all.filter(one => one.name === name).map(one => one.labels[label] ?? ''))].sort()
  }
}

function none(): never {
  throw new Error('This gateway has no metrics.')
}
