import type { FastifyInstance } from 'fastify'
import type { Test } from 'tap'
import type { ModelOptions, RoutingOptions } from '../../../plugins/routing/index.ts'
import type { TargetState } from '../../../plugins/routing/target-state.ts'
import { vendorFault } from '../../../providers/faults.ts'
import type { ChatRequest } from '../../../schemas/chat.ts'
import type { GatewayError } from '../../../schemas/errors.ts'
import type { CallerOptions, Completed, Expense } from '../../../schemas/gateway.ts'
import type { Provider, Send } from '../../../schemas/provider.ts'
import { ask, host, rejection, type Scripted, scripted } from '../kernel.ts'

// Routing with a clock of its own, pauses that take no time, and draws from a seed.

/** A clock that stands still until it is told. */
export class Clock {
  time = 1_800_000_000_000
  now = () => this.time
  advance(milliseconds: number): void {
    this.time += milliseconds
  }
}

export interface StageOptions extends Omit<RoutingOptions, 'now' | 'models'> {
  providers: Provider[]
  /** The alias `test`, or several. */
  models: Readonly<Record<string, ModelOptions>> | ModelOptions
  log?: (line: string) => void
  /** Adds layers and plugins. */
  before?: (app: FastifyInstance) => unknown
}

export interface Stage {
  readonly app: FastifyInstance
  readonly gateway: FastifyInstance['gateway']
  readonly clock: Clock
  /** What was waited before repeats, in milliseconds; the clock has gone on by as much. */
  readonly pauses: number[]
  /** Every provider call, in the order in which they were opened. */
  readonly expenses: Expense[]
  run(request?: ChatRequest, caller?: CallerOptions): Promise<Completed>
  fail(request?: ChatRequest, caller?: CallerOptions): Promise<Error & Record<string, unknown>>
  state(name: string): TargetState
}

export async function stage(t: Test, options: StageOptions): Promise<Stage> {
  const { providers, models, log = () => {}, before, ...routing } = options
  const clock = new Clock()
  const pauses: number[] = []
  const expenses: Expense[] = []
  const app = await host(t, {
    providers,
    log,
    routing: {
      random: () => 0,
      async pause(milliseconds) {
        pauses.push(milliseconds)
        clock.advance(milliseconds)
      },
      ...routing,
      models: isModel(models) ? { test: models } : models,
      now: clock.now
    }
  })
  await before?.(app)
  app.gateway.interceptAttempt((attempt, next) => {
    expenses.push(attempt.entry)
    return next(attempt)
  })
  await app.ready()
  const { gateway } = app
  const run: Stage['run'] = (request = ask, caller) => gateway.complete(request, gateway.caller(caller))
  return {
    app,
    gateway,
    clock,
    pauses,
    expenses,
    run,
    fail: (request, caller) => rejection(run(request, caller)),
    state(name) {
      const found = gateway.targets.states.find(({ provider, model }) => `${provider.name}/${model}` === name)
      if (found === undefined) throw new Error(`There is no target ${name}.`)
      return found
    }
  }
}

function isModel(models: StageOptions['models']): models is ModelOptions {
  return Array.isArray(models['targets'])
}

/** A pause that only ends with its signal. */
export function forever(_: number, signal: AbortSignal): Promise<void> {
  return new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
}

/** Targets at these providers, in their order: the model is `m`. */
export function at(...providers: string[]): ModelOptions['targets'] {
  return providers.map(provider => ({ provider, model: 'm' }))
}

/** What a provider's answer with this status becomes. */
export function status(code: number, headers: Record<string, string> = {}): GatewayError {
  return vendorFault(code, { message: `status ${code}` }, headers, text => text)
}

/** A scripted provider with so many keys. */
export function keyed(name: string, keys: number, ...scripts: Send[]): Scripted {
  return Object.assign(scripted(name, ...scripts), { keys })
}

/** The keys that a provider was asked with, in order. */
export function keysOf({ attempts }: Scripted): number[] {
  return attempts.map(({ key }) => key)
}

/** The models that a provider was asked for, in order. */
export function modelsOf({ attempts }: Scripted): string[] {
  return attempts.map(({ request }) => request.model ?? '')
}

/** What became of each provider call. */
export function ends(expenses: readonly Expense[]): string[] {
  return expenses.map(({ target, status }) => `${target.provider.name} ${status}`)
}

/** A second turn of the conversation that begins with these words. */
export function secondTurn(words: string, rest: Partial<ChatRequest> = {}): ChatRequest {
  const messages: ChatRequest['messages'] = [
    { role: 'user', content: words },
    { role: 'assistant', content: 'Yes?' },
    { role: 'user', content: 'Go on.' }
  ]
  return { model: 'test', messages, ...rest }
}

/** How often each comes, as shares of all. */
export function shares(values: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1 / values.length
  return counts
}
