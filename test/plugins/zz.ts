import t from 'tap'
import { pluginTests } from './ledger/plugin.ts'
t.runOnly = true
pluginTests(t)
setTimeout(() => { console.error('HANDLES', process.getActiveResourcesInfo()) }, 4000).unref()
