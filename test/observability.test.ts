import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { scrape } from './plugins/metrics/exposition.ts'
import { busy, everything, fetched } from './plugins/metrics/live.ts'
import { askedBy } from './plugins/metrics/promql.ts'

// The page on metrics, the dashboard and the alert rules against what gateways say that have lived through everything.

const read = (path: string) => readFileSync(new URL(`../docs/${path}`, import.meta.url), 'utf8')

const alerts = fileURLToPath(new URL('../docs/observability/alerts.yaml', import.meta.url))

/** Prometheus adds these to every series that it scrapes. */
const added: ReadonlySet<string> = new Set(['instance', 'job'])

t.test('which series an expression asks for, and by what', async t => {
  t.strictSame(
    askedBy('sum by (a, le) (rate(x_total{b="c{}(", d!~"e"}[5m])) / on(f) group_left (g) y > 1e9 and z{h=\'\'} or 0.5'),
    {
      series: [
        { name: 'x_total', labels: ['b', 'd'] },
        { name: 'y', labels: [] },
        { name: 'z', labels: ['h'] }
      ],
      grouped: ['a', 'le', 'f', 'g']
    }
  )
  t.strictSame(
    askedBy('increase(x[$__range]) offset 5m unless y')
      .series.map(({ name }) => name)
      .slice(0, 1),
    ['x']
  )
  t.throws(() => askedBy('sum(rate(x[5m])'), /not balanced/)
})

t.test('the dashboard and the alerts', async t => {
  const known = await everything(t)

  function check(t: Test, expression: string, where: string): void {
    const { series, grouped } = askedBy(expression)
    t.ok(series.length > 0, `${where} asks for something`)
    const groupable = new Set([...added, 'le'])
    for (const { name, labels } of series) {
      // Prometheus makes it itself.
      if (name === 'up') continue
      const found = known.get(name)
      if (found === undefined) {
        t.fail(`${where}: nobody knows ${name}`)
        continue
      }
      for (const label of found.labels) groupable.add(label)
      for (const label of labels)
        if (!found.labels.has(label) && !added.has(label)) t.fail(`${where}: ${name} has no label ${label}`)
      const within = new RegExp(`(?:rate|increase)\\(\\s*${name}\\b`).test(expression)
      if (found.type === 'gauge' && within) t.fail(`${where}: ${name} is a gauge and has no rate`)
      if (found.type !== 'gauge' && !within) t.fail(`${where}: ${name} is a counter: take its rate`)
    }
    for (const label of grouped) if (!groupable.has(label)) t.fail(`${where}: nothing has the label ${label}`)
  }

  t.test('every panel asks for series that there are', async t => {
    const { panels, templating } = JSON.parse(read('observability/grafana-dashboard.json'))
    const ids = new Set<number>()
    let targets = 0
    for (const panel of panels) {
      t.notOk(ids.has(panel.id), `one panel ${panel.id}`)
      ids.add(panel.id)
      for (const { expr, legendFormat } of panel.targets ?? []) {
        targets++
        check(t, expr, panel.title)
        const { series, grouped } = askedBy(expr)
        for (const [, label = ''] of legendFormat.matchAll(/\{\{(\w+)\}\}/g)) {
          const isKept = series.some(({ name }) => known.get(name)?.labels.has(label)) || added.has(label)
          t.ok(grouped.length > 0 ? grouped.includes(label) : isKept, `${panel.title}: {{${label}}}`)
        }
      }
    }
    t.ok(targets > 40, `${targets} expressions`)
    for (const { name, type, query } of templating.list) {
      if (type !== 'query') continue
      const [, metric = '', label = ''] = /^label_values\((\w+), (\w+)\)$/.exec(query.query) ?? []
      t.ok(known.has(metric) && (added.has(label) || known.get(metric)?.labels.has(label)), `$${name}`)
    }
  })

  t.test('every rule asks for series that there are, and says what is wrong', async t => {
    const { groups } = parse(read('observability/alerts.yaml'))
    const rules = groups.flatMap((group: { rules: unknown[] }) => group.rules)
    t.ok(rules.length >= 15)
    for (const { alert, expr, annotations, labels } of rules) {
      check(t, expr, alert)
      t.match(labels.severity, /^(warning|critical)$/, alert)
      const { grouped, series } = askedBy(expr)
      for (const [, label = ''] of JSON.stringify(annotations).matchAll(/\$labels\.(\w+)/g)) {
        const isKept = series.some(({ name }) => known.get(name)?.labels.has(label)) || added.has(label)
        t.ok(grouped.length > 0 ? grouped.includes(label) : isKept, `${alert}: ${label}`)
      }
    }
  })

  t.test('docs/plugins/metrics.md has every metric as it is', async t => {
    const rows = [...read('plugins/metrics.md').matchAll(/^\| `(\w+)` \| (\w+) \|([^|]*)\| \S[^|]+ \|$/gm)]
    const written = new Map(
      rows.map(([, name = '', type, labels = '']) => [name, { type, labels: (labels.match(/\w+/g) ?? []).sort() }])
    )
    t.equal(written.size, rows.length, 'each once')
    const live = new Map<string, { type: string; labels: Set<string> }>()
    for (const { family, type, labels } of known.values()) {
      const found = live.get(family) ?? { type, labels: new Set() }
      live.set(family, found)
      for (const label of labels) if (label !== 'le') found.labels.add(label)
    }
    t.strictSame([...written.keys()].sort(), [...live.keys()].sort())
    for (const [name, { type, labels }] of live) {
      t.strictSame(written.get(name), { type, labels: [...labels].sort() }, name)
    }
  })
})

t.test('everything that is announced has been seen', async t => {
  const known = await everything(t)
  const families = new Set([...known.values()].map(({ family }) => family))
  for (const { name } of (await scrape(await busy(t))).families.values()) t.ok(families.has(name), name)
})

t.test('promtool accepts the exposition and the rules', async t => {
  const text = (await fetched(await busy(t))).text
  const metrics = await promtool(['check', 'metrics'], text)
  if (metrics === null) {
    t.comment('promtool is not installed')
    return
  }
  t.equal(metrics.code, 0, metrics.said)
  const { panels } = JSON.parse(read('observability/grafana-dashboard.json'))
  const expressions: string[] = panels.flatMap(({ targets = [] }) => targets.map(({ expr }: { expr: string }) => expr))
  const rules = expressions.map((expr, index) => {
    return { record: `panel:${index}`, expr: expr.replaceAll(/\[\$\w+\]/g, '[5m]').replaceAll(/\$\w+/g, 'x') }
  })
  const directory = t.testdir({ 'panels.yaml': JSON.stringify({ groups: [{ name: 'panels', rules }] }) })
  for (const file of [`${directory}/panels.yaml`, alerts]) {
    const checked = await promtool(['check', 'rules', file], '')
    t.match(checked, { code: 0 }, checked?.said ?? 'it was there before')
  }
})

/** Null: it is not there. */
async function promtool(words: readonly string[], input: string): Promise<{ code: number; said: string } | null> {
  const child = spawn('promtool', words, { stdio: 'pipe' })
  let said = ''
  child.stdout.on('data', piece => (said += piece))
  child.stderr.on('data', piece => (said += piece))
  child.stdin.on('error', () => {})
  try {
    await once(child, 'spawn')
  } catch {
    return null
  }
  child.stdin.end(input)
  const [code] = await once(child, 'close')
  return { code, said }
}
