import type { Abilities } from '../../../schemas/provider.ts'

/** What Google's models differ in, as far as a request has to know it. */
export interface Family {
  /** How a model is told to think: by a level (3 and later), by a budget of tokens (2.5), or not at all. */
  readonly thinking: 'level' | 'budget' | null
  /** The least of either that it can be told; no Gemini 3 can be told not to think. */
  readonly lowestLevel: 'MINIMAL' | 'LOW'
  readonly budgets: { readonly least: number; readonly most: number }
  /** Calls of tools have to come back with the signature of the thought that made them. */
  readonly signed: boolean
  /** False: what the system says has to be said by the user (Gemma). */
  readonly systemInstruction: boolean
}

const firstGenerations = /^gemini-(?:1[.-]|2[.-]|pro(?:-vision)?$|robotics-er-1\.5)/
const thinkingByBudget = /^gemini-(?:2\.5|robotics-er-1\.5|3-pro-image)/
/** Pro from 3 on, and Flash from 3.7 on but not Flash-Lite. */
const neverMinimal = /^gemini-(?:(?:[3-9]|\d\d)(?:\.\d+)?-pro|flash-latest$|(?:3\.[7-9]|[4-9]\.\d+)-flash(?!-lite))/

/** Names are open-ended: a Gemini that is not known to be old is taken for one of the newest. */
export function familyOf(model: string): Family {
  const name = nameOf(model)
  const signed = name.startsWith('gemini-') && !firstGenerations.test(name)
  const byBudget = thinkingByBudget.test(name)
  const pro = name.startsWith('gemini-2.5-pro') || name.startsWith('gemini-3-pro')
  return {
    thinking: byBudget ? 'budget' : signed ? 'level' : null,
    lowestLevel: neverMinimal.test(name) ? 'LOW' : 'MINIMAL',
    budgets: { least: pro ? 128 : 0, most: pro ? 32_768 : 24_576 },
    signed,
    systemInstruction: !name.startsWith('gemma-')
  }
}

/** What is known of a model by its name; nothing of one that does not belong to Gemini. */
export function abilitiesOf(model: string): Abilities {
  const name = nameOf(model)
  if (name.startsWith('gemma-')) return { tools: false, jsonSchema: false, files: false }
  if (!name.startsWith('gemini-') || /-(?:tts|live|native-audio|embedding|computer-use)/.test(name)) return {}
  if (name.includes('-image')) return { streaming: true, images: true, tools: false, audio: false }
  const abilities = { streaming: true, tools: true, images: true, files: true, audio: true, jsonSchema: true }
  return firstGenerations.test(name) && !/^gemini-2[.-]/.test(name)
    ? abilities
    : { ...abilities, contextLength: 1_048_576 + (name.startsWith('gemini-2.0') ? 8_192 : 65_536) }
}

/** Without the folder that it stands in. */
function nameOf(model: string): string {
  return model.slice(model.lastIndexOf('/') + 1).toLowerCase()
}
