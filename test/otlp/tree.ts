import type { Span } from './messages.ts'

/** A span with what was done below it, in the order in which it began. */
export interface Branch {
  readonly span: Span
  readonly children: readonly Branch[]
}

/** The roots: spans without a parent, and those whose parent is not among these. */
export function treeOf(spans: readonly Span[]): Branch[] {
  const ids = new Set<string>()
  for (const { traceId, spanId } of spans) {
    if (ids.has(traceId + spanId)) throw new Error(`The span ${spanId} was exported twice.`)
    ids.add(traceId + spanId)
  }
  const ordered = spans.toSorted((a, b) => Number(a.start - b.start) || Number(a.end - b.end))
  const branch = (span: Span): Branch => ({ span, children: ordered.filter(isBelow(span)).map(branch) })
  return ordered.filter(span => !ids.has(span.traceId + span.parentSpanId)).map(branch)
}

function isBelow(parent: Span) {
  return (span: Span) => span.traceId === parent.traceId && span.parentSpanId === parent.spanId
}

/** The trees as text, a line for each span, indented below its parent: its kind, name, and status where it is an error. */
export function drawn(spans: readonly Span[]): string[] {
  const draw = ({ span, children }: Branch, depth: number): string[] => {
    const { kind, name, status, attributes } = span
    const error = status.code === 'error' ? ` !${attributes['error.type'] ?? ''}` : ''
    return [`${'  '.repeat(depth)}${kind} ${name}${error}`, ...children.flatMap(child => draw(child, depth + 1))]
  }
  return treeOf(spans).flatMap(root => draw(root, 0))
}

/**
 * What is wrong with the times: a span that ends before it begins, or that is not within its parent.
 * @param slack nanoseconds: the SDK takes the beginning of each span from a clock of whole milliseconds
 */
export function faultsOfTimes(spans: readonly Span[], slack = 1_000_000n): string[] {
  const faults: string[] = []
  const visit = ({ span, children }: Branch) => {
    if (span.end < span.start) faults.push(`${span.name} ends ${span.start - span.end} ns before it begins`)
    for (const { span: child } of children) {
      const early = span.start - child.start
      const late = child.end - span.end
      if (early > slack) faults.push(`${child.name} begins ${early} ns before ${span.name}`)
      if (late > slack) faults.push(`${child.name} ends ${late} ns after ${span.name}`)
    }
    children.forEach(visit)
  }
  treeOf(spans).forEach(visit)
  return faults
}
