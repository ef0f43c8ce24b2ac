import { readFileSync } from 'node:fs'

// The table of docs/routing.md, as a test reads it.

export const forms = ['whole', 'stream'] as const
export type Form = (typeof forms)[number]

/** What a call comes to, in the words of the table. */
export interface Course {
  /** Status, code and what is said of repeating: `502 upstream_error, no retry`. */
  readonly client: string
  readonly attempts: string
  /** What became of each attempt in the ledger: `failed ×3, settled`. */
  readonly ledger: string
}

export interface Row {
  /** As written: `429: with retry-after 2`. */
  readonly name: string
  /** Of the list that has to be there: `429`. */
  readonly fault: string
  readonly forms: readonly Form[]
  readonly alone: Course
  readonly fallback: Course
  readonly repeated: string
  readonly breaker: string
  readonly key: string
  readonly deadline: string
}

const columns = [
  'Fault',
  'Asked for',
  'Alone: client',
  'attempts',
  'ledger',
  'With a fallback: client',
  'attempts',
  'ledger',
  'Repeated',
  'Breaker',
  'Key rests',
  'Deadline'
]

/** @throws Error where the page has no such table, or a row is not one of it */
export function rowsOf(page: URL): Row[] {
  const lines = readFileSync(page, 'utf8').split('\n')
  const head = lines.findIndex(line => cellsOf(line).join('|') === columns.join('|'))
  if (head === -1) throw new Error(`There is no table with the columns ${columns.join(', ')}.`)
  const rest = lines.slice(head + 2)
  const end = rest.findIndex(line => !line.startsWith('|'))
  return rest.slice(0, end === -1 ? undefined : end).map(rowOf)
}

function rowOf(line: string): Row {
  const cells = cellsOf(line)
  if (cells.length !== columns.length) throw new Error(`This row has ${cells.length} cells: ${line}`)
  const [name, asked, ...rest] = cells as [string, string, ...string[]]
  const [client, attempts, ledger, client2, attempts2, ledger2, repeated, breaker, key, deadline] = rest as [
    ...Fixed<10>
  ]
  return {
    name,
    fault: name.split(':')[0]!,
    forms: forms.filter(form => asked === form || asked === 'either'),
    alone: { client, attempts, ledger },
    fallback: { client: client2, attempts: attempts2, ledger: ledger2 },
    repeated,
    breaker,
    key,
    deadline
  }
}

type Fixed<Length extends number, List extends string[] = []> = List['length'] extends Length
  ? List
  : Fixed<Length, [...List, string]>

function cellsOf(line: string): string[] {
  return line
    .split('|')
    .slice(1, -1)
    .map(cell => cell.trim())
}
