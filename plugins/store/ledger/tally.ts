import type { OpenLine } from '../../../schemas/journal.ts'
import type { Balance, Sums } from '../../../schemas/ledger.ts'
import { inputOf, outputOf } from '../../../schemas/usage.ts'
import type { Database } from '../database.ts'
import { bigintIn, statementsFor, textIn } from './statements.ts'

/** What one transaction adds to one balance. */
interface Account {
  readonly scope: string
  readonly period: string
  /** The tally that these numbers belong to. */
  tally: number
  spent: number
  requests: number
  tokensIn: number
  tokensOut: number
}

/** What calls of one caller in one period are charged to. */
export interface Charge {
  /** JSON: [[scope, period], …], as the column holds it. */
  readonly text: string
  readonly accounts: readonly Account[]
}

/** What one transaction adds to the balances. */
export interface Tally {
  add(charge: Charge, sums: Sums, requests: number): void
  /** Takes away, for a row that becomes another. */
  subtract(charge: Charge, sums: Sums): void
  /** Scopes and periods that it changes. */
  pairs(): ReadonlyArray<readonly [scope: string, period: string]>
  /** Writes it into the balances; the last thing in a transaction, since it holds up the folds of others. */
  write(database: Database): Promise<Balance[]>
}

/** Above it sums of one batch could leave the exact numbers. */
const exact = 2 ** 52
const mostKnown = 10_000

/** Charges of calls, known again by their text, and their sums. */
export function createTallies() {
  const charges = new Map<string, Charge>()
  const accounts = new Map<string, Account>()
  let count = 0

  function accountOf(scope: string, period: string): Account {
    const name = `${scope}\n${period}`
    let account = accounts.get(name)
    if (account === undefined) {
      account = { scope, period, tally: 0, spent: 0, requests: 0, tokensIn: 0, tokensOut: 0 }
      accounts.set(name, account)
    }
    return account
  }

  function chargeOf(pairs: OpenLine['charges']): Charge {
    const text = JSON.stringify(pairs)
    return { text, accounts: pairs.map(([scope, period]) => accountOf(scope, period)) }
  }

  return {
    /** The totals of gateway, tenant and key, and what the line names besides. */
    of({ tenant, key, charges: named }: Pick<OpenLine, 'tenant' | 'key' | 'charges'>): Charge {
      let name = key === null ? tenant : `${tenant}\n${key}`
      for (const [scope, period] of named) name += `\n${scope}\n${period}`
      const known = charges.get(name)
      if (known !== undefined) return known
      const pairs: Array<readonly [string, string]> = [
        ['gateway', 'total'],
        [`tenant:${tenant}`, 'total']
      ]
      if (key !== null) pairs.push([`key:${key}`, 'total'])
      for (const [scope, period] of named) {
        if (!pairs.some(pair => pair[0] === scope && pair[1] === period)) pairs.push([scope, period])
      }
      const charge = chargeOf(pairs)
      charges.set(name, charge)
      return charge
    },

    /** Of a row: its column `charges`. */
    read: (text: string): Charge => chargeOf(JSON.parse(text) as OpenLine['charges']),

    /** Begins the sums of one transaction; what an earlier one has not written is forgotten. */
    begin(): Tally {
      if (charges.size > mostKnown || accounts.size > mostKnown) {
        charges.clear()
        accounts.clear()
      }
      const own = ++count
      const touched: Account[] = []
      const large = new Map<Account, bigint>()

      function change(charge: Charge, { cost, usage }: Sums, sign: 1 | -1, requests: number): void {
        const spent = sign * (cost ?? 0)
        const input = sign * inputOf(usage)
        const output = sign * outputOf(usage)
        for (const account of charge.accounts) {
          if (account.tally !== own) {
            account.tally = own
            account.spent = 0
            account.requests = 0
            account.tokensIn = 0
            account.tokensOut = 0
            touched.push(account)
          }
          if (Math.abs(account.spent) >= exact) {
            large.set(account, (large.get(account) ?? 0n) + BigInt(account.spent))
            account.spent = 0
          }
          account.spent += spent
          account.requests += requests
          account.tokensIn += input
          account.tokensOut += output
        }
      }

      return {
        add: (charge, sums, requests) => change(charge, sums, 1, requests),
        subtract: (charge, sums) => change(charge, sums, -1, 0),
        pairs: () => touched.map(({ scope, period }) => [scope, period] as const),
        async write(database) {
          if (touched.length === 0) return []
          // Everybody locks balances in one order, or two folds could wait for each other.
          touched.sort((one, other) => compare(one.scope, other.scope) || compare(one.period, other.period))
          const texts = touched.map(account => {
            const { scope, period, requests, tokensIn, tokensOut } = account
            const spent = BigInt(account.spent) + (large.get(account) ?? 0n)
            const names = `"scope":${JSON.stringify(scope)},"period":${JSON.stringify(period)}`
            return `{${names},"spent":${spent},"requests":${requests},"tokens_in":${tokensIn},"tokens_out":${tokensOut}}`
          })
          const rows = await database.all(statementsFor(database).upsertBalances, [`[${texts.join(',')}]`], true)
          return rows.map(balanceOf)
        }
      }
    }
  }
}

export type Tallies = ReturnType<typeof createTallies>

/** Of a row that was read with bigints. */
export function balanceOf(row: Parameters<typeof textIn>[0]): Balance {
  return {
    scope: textIn(row, 'scope'),
    period: textIn(row, 'period'),
    spent: bigintIn(row, 'spent'),
    requests: Number(bigintIn(row, 'requests')),
    tokensIn: bigintIn(row, 'tokens_in'),
    tokensOut: bigintIn(row, 'tokens_out'),
    version: Number(bigintIn(row, 'version'))
  }
}

function compare(one: string, other: string): number {
  return one < other ? -1 : one > other ? 1 : 0
}
