import { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { LedgerRecord } from '../../schemas/ledger.ts'
import { csvHead, csvLine } from './csv.ts'
import { recordShape } from './shapes.ts'

export interface ExportFormat {
  /** Media types that ask for it; the first is what it is sent as. */
  readonly types: readonly string[]
  readonly extension: string
  readonly head: string
  line(record: LedgerRecord): string
}

export const exportFormats = {
  jsonl: {
    types: ['application/x-ndjson', 'application/ndjson', 'application/jsonl', 'application/x-jsonlines'],
    extension: 'jsonl',
    head: '',
    line: record => `${JSON.stringify(recordShape(record))}\n`
  },
  csv: { types: ['text/csv'], extension: 'csv', head: csvHead, line: csvLine }
} satisfies Record<string, ExportFormat>

/**
 * Sends every row as it is read. The store is asked for more only as fast as the client takes it, and for nothing more
 * once the client has left.
 */
export async function sendExport(
  reply: FastifyReply,
  pieces: AsyncIterable<LedgerRecord[]>,
  format: ExportFormat,
  name: string
): Promise<FastifyReply> {
  const iterator = pieces[Symbol.asyncIterator]()
  // A database that cannot be read is still an error in our form, not a file that breaks off.
  const first = await iterator.next()
  return reply
    .header('content-type', `${format.types[0]}; charset=utf-8`)
    .header('content-disposition', `attachment; filename="${name.replace(/[^\w.@-]/g, '_')}.${format.extension}"`)
    .send(streamOf(first, iterator, format))
}

/** Not a generator: one that was never started would not close what it reads from. */
function streamOf(
  first: IteratorResult<LedgerRecord[]>,
  iterator: AsyncIterator<LedgerRecord[]>,
  format: ExportFormat
): Readable {
  let waiting: IteratorResult<LedgerRecord[]> | null = first
  let begun = false

  async function piece(): Promise<string | null> {
    for (;;) {
      const { done, value } = waiting ?? (await iterator.next())
      waiting = null
      const head = begun ? '' : format.head
      begun = true
      if (done) return head === '' ? null : head
      const text = head + value.map(format.line).join('')
      if (text !== '') return text
    }
  }

  return new Readable({
    read() {
      piece().then(
        text => this.push(text),
        error => this.destroy(error)
      )
    },
    destroy(error, done) {
      Promise.resolve(iterator.return?.()).then(
        () => done(error),
        () => done(error)
      )
    }
  })
}
