import { show } from './faults.ts'
import { isRecord } from './reader.ts'

/**
 * What the configuration knows and the gateway does not do yet. `*` is any name, `=value` one value of the key. A line
 * goes when its feature comes.
 */
export const unbuilt: readonly string[] = [
  'plugins.cache',
  'plugins.structuredOutput',
  'plugins.opa',
  'plugins.insights',
  'plugins.realtime'
]

/** One sentence for each thing of `unbuilt` that was written and is not switched off. */
export function notesOf(written: unknown, missing: readonly string[] = unbuilt): string[] {
  return missing.flatMap(line => {
    const [path = '', value] = line.split('=')
    return match(written, path.split('.'), []).flatMap(([found, at]) => {
      if (found === false || (value !== undefined && found !== value)) return []
      return [`${show(at)}${value === undefined ? '' : `: ${value}`} is accepted, but not built yet: it has no effect.`]
    })
  })
}

function match(value: unknown, steps: readonly string[], path: readonly string[]): Array<[unknown, readonly string[]]> {
  const [step, ...rest] = steps
  if (step === undefined) return value === undefined ? [] : [[value, path]]
  if (!isRecord(value) || value['enabled'] === false) return []
  const keys = step === '*' ? Object.keys(value) : Object.hasOwn(value, step) ? [step] : []
  return keys.flatMap(key => match(value[key], rest, [...path, key]))
}
