// Rounds into rows: medians, extremes, and ratios taken round by round.

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

/**
 * One measure of several contenders. `add` takes a value of a round; a contender that failed keeps its reason. With
 * `single` it is one contender's, and no ratio is taken.
 */
export function measure(title, digits = 0, { single = false } = {}) {
  const rounds = new Map()
  const failures = new Map()
  const notes = new Map()
  return {
    title,
    digits,
    single,
    rounds,
    failures,
    notes,
    add(name, value) {
      if (!rounds.has(name)) rounds.set(name, [])
      rounds.get(name).push(value)
    },
    fail(name, error) {
      if (!failures.has(name)) failures.set(name, String(error.message ?? error).replaceAll(/\s+/g, ' '))
    },
    note(name, text) {
      notes.set(name, text)
    }
  }
}

/** The table, one line per measure and contender, in Markdown that also reads well on a terminal. */
export function print(measures, contenders, base, other) {
  const head = [
    'measure',
    'contender',
    'median',
    'min to max',
    `to ${base.title}`,
    ...(other ? [`to ${other.title}`] : []),
    'note'
  ]
  const rows = measures.flatMap(one => lines(one, contenders, base, other))
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map(row => row[column].length)))
  const right = head.map((_, column) => column > 1 && column < head.length - 1)
  const line = row =>
    `| ${row.map((cell, i) => (right[i] ? cell.padStart(widths[i]) : cell.padEnd(widths[i]))).join(' | ')} |`
  const rule = `|${widths.map((width, i) => (right[i] ? `${'-'.repeat(width + 1)}:` : '-'.repeat(width + 2))).join('|')}|`
  return [line(head), rule, ...rows.map(line)].join('\n')
}

function lines(one, contenders, base, other) {
  const width = other ? 7 : 6
  const present = contenders.filter(({ name }) => one.rounds.has(name) || one.failures.has(name))
  const first = present.includes(base) ? base : present[0]
  return present.map(({ name, title }, i) => {
    const row = Array(width).fill('')
    row[0] = i === 0 ? one.title : ''
    row[1] = title
    const reason = one.failures.get(name)
    if (reason !== undefined) {
      row[2] = 'FAILED'
      row[width - 1] = reason
      return row
    }
    const values = one.rounds.get(name)
    row[2] = number(median(values), one.digits)
    row[3] = `${number(Math.min(...values), one.digits)} to ${number(Math.max(...values), one.digits)}`
    row[4] = one.single ? '' : ratio(one, name, first.name)
    if (other) row[5] = ratio(one, name, other.name)
    row[width - 1] = one.notes.get(name) ?? ''
    return row
  })
}

/** The median of the rounds' own ratios: what slowed a whole round down slowed both. */
function ratio(one, name, to) {
  const values = one.rounds.get(name)
  const others = one.rounds.get(to)
  if (others === undefined || one.failures.has(to)) return ''
  const ratios = values
    .map((value, round) => value / others[round])
    .filter(value => Number.isFinite(value) && value > 0)
  return ratios.length === values.length ? median(ratios).toFixed(2) : ''
}

function number(value, digits) {
  if (!Number.isFinite(value)) return 'n/a'
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits })
}
