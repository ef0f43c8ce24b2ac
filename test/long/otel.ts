import { readFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import type { Test } from 'tap'
import { absent, type Conduct, type Protocol, startReceiver } from '../otlp/receiver.ts'
import { run, server } from '../server-process.ts'

// What otel.test.ts runs: how callers fare while a collector does what collectors do.

const MB = 1024 * 1024

export interface Load {
  readonly protocol: Protocol
  /** null: without OpenTelemetry. */
  readonly conduct: Conduct | 'absent' | null
  readonly calls: number
}

/** Milliseconds of a call, and megabytes: after the first half of the calls, and what the second half has added. */
export interface Fared {
  readonly half: number
  readonly p50: number
  readonly p99: number
  readonly failed: number
  readonly memory: number
  readonly grown: number
  /** Milliseconds until the process had ended. */
  readonly end: number
}

const atOnce = 8

/** A whole server that answers by itself, called by a few clients that are never idle. */
export async function fare(t: Test, { protocol, conduct, calls }: Load): Promise<Fared> {
  const present = conduct !== null && conduct !== 'absent'
  const receiver = present ? await startReceiver(protocol, { conduct }) : null
  t.teardown(() => receiver?.close())
  const env = receiver?.env ?? (conduct === null ? {} : await absent(protocol))
  const config = { providers: { echo: { type: 'echo', words: 8 } }, store: false, plugins: { rateLimit: false } }
  // What was kept of all calls would be more than this heap.
  const command = [process.execPath, '--max-old-space-size=128', server] as const
  const gateway = run(t, { files: { 'gateway.yaml': config }, env, command: [...command] })
  const url = await gateway.url()
  const agent = new Agent({ keepAlive: true, maxSockets: atOnce })
  t.teardown(() => agent.destroy())
  const resident = () => {
    const kilobytes = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8'))?.[1]
    return (Number(kilobytes) * 1024) / MB
  }

  const took: number[] = []
  let failed = 0
  const load = async (calls: number) => {
    let left = calls
    const client = async () => {
      while (left-- > 0) {
        const started = performance.now()
        if ((await ask(url, agent, left % 4 === 0)) !== 200) failed++
        took.push(performance.now() - started)
      }
    }
    await Promise.all(Array.from({ length: atOnce }, client))
  }
  await load(Math.min(2_000, calls / 4))
  took.length = 0
  await load(calls / 2)
  const memory = resident()
  await load(calls / 2)
  const grown = resident() - memory
  const ending = performance.now()
  await gateway.stop()
  took.sort((a, b) => a - b)
  const at = (share: number) => took[Math.floor(took.length * share)] ?? 0
  return { half: calls / 2, p50: at(0.5), p99: at(0.99), failed, memory, grown, end: performance.now() - ending }
}

const body = (stream: boolean) =>
  JSON.stringify({ model: 'echo/echo', stream, messages: [{ role: 'user', content: 'one two three' }] })
const bodies = [body(false), body(true)]

function ask(url: string, agent: Agent, stream: boolean): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json' }
    const sent = request(`${url}/v1/chat/completions`, { method: 'POST', agent, headers }, response => {
      response.resume()
      response.once('end', () => resolve(response.statusCode))
      response.once('error', reject)
    })
    sent.once('error', reject)
    sent.end(bodies[Number(stream)])
  })
}
