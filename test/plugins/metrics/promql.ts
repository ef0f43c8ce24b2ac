// As much of PromQL as names need: which series an expression asks for, and by which labels.

export interface Asked {
  /** Series, with the labels that they are chosen by. */
  readonly series: ReadonlyArray<{ readonly name: string; readonly labels: readonly string[] }>
  /** Labels that results are grouped or joined by. */
  readonly grouped: readonly string[]
}

const grouping = /\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)/g
const words = /(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\{[^{}]*\})?(?=(\s*\()?)/g
const keywords: ReadonlySet<string> = new Set(['and', 'or', 'unless', 'bool', 'offset', 'inf', 'nan', 'atan2'])

/** @throws Error for what is not balanced */
export function askedBy(expression: string): Asked {
  // Texts first: they may hold anything. Then ranges, and what Grafana fills in.
  const bare = expression.replace(/"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/g, '""').replace(/\[[^\]]*\]/g, '')
  for (const [open, close] of ['()', '{}']) {
    if (bare.split(open!).length !== bare.split(close!).length) throw new Error(`not balanced: ${expression}`)
  }
  const grouped: string[] = []
  const rest = bare.replace(grouping, (_, labels: string) => {
    grouped.push(...namesIn(labels))
    return ' '
  })
  const series: Array<{ name: string; labels: string[] }> = []
  for (const [, name = '', selector, called] of rest.matchAll(words)) {
    if (keywords.has(name.toLowerCase()) || (called !== undefined && selector === undefined)) continue
    series.push({ name, labels: namesIn((selector ?? '').replace(/=~|!~|!=|=/g, ',')) })
  }
  return { series, grouped }
}

function namesIn(list: string): string[] {
  return list.match(/[a-zA-Z_]\w*/g) ?? []
}
