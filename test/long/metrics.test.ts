import t from 'tap'
import { equalsLedger } from '../plugins/metrics/ledger.ts'
import { mixed } from './money.ts'

t.test('after 10,000 mixed calls the counters are what the ledger says', t => mixed(t, 10_000, 64, equalsLedger))
