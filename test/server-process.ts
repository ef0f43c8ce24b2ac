import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { type Agent, get, type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

// server.ts as a process of its own.

export const server = fileURLToPath(new URL('../server.ts', import.meta.url))

export interface RunOptions {
  args?: string[]
  env?: Record<string, string>
  /** Files of the directory that the server is started in. */
  files?: Record<string, string | object>
  /** The program and its arguments, in place of server.ts. */
  command?: [string, ...string[]]
}

/** A directory of its own for one server, removed after the test; `tmp` in it is the server's TMPDIR. */
function workspace(t: Test, files: RunOptions['files'] = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'gateway-server-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 3 }))
  mkdirSync(join(folder, 'tmp'))
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true })
    writeFileSync(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content))
  }
  return folder
}

/** Starts the server in an empty directory with an empty environment, on any free port. */
export function run(t: Test, { args = [], env = {}, files, command }: RunOptions = {}) {
  const folder = workspace(t, files)
  // Through env(1), which becomes the server: tap hands every process it starts a loader of its own.
  const child = spawn('env', ['-u', 'NODE_OPTIONS', ...(command ?? [process.execPath, server]), ...args], {
    cwd: folder,
    env: { PATH: process.env['PATH'], HOME: folder, TMPDIR: join(folder, 'tmp'), PORT: '0', ...env },
    stdio: 'pipe'
  })
  const said = { stdout: '', stderr: '' }
  const watchers = new Set<() => void>()
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', text => {
      said[name] += text
      for (const check of watchers) check()
    })
  }
  const ended = new Promise<number | string>(resolve => {
    child.on('close', (code, signal) => {
      resolve(code ?? signal ?? 'neither code nor signal')
      for (const check of watchers) check()
    })
  })
  t.teardown(async () => {
    child.kill('SIGKILL')
    await ended
  })

  /** What the pattern catches, as soon as the server has said it. */
  function until(pattern: RegExp): Promise<string> {
    return new Promise((resolve, reject) => {
      const check = () => {
        const found = pattern.exec(said.stdout) ?? pattern.exec(said.stderr)
        const over = child.exitCode !== null || child.signalCode !== null
        if (!found && !over) return
        watchers.delete(check)
        if (found) resolve(found[1] ?? found[0])
        else reject(new Error(`ended without ${pattern}: ${said.stdout}${said.stderr}`))
      }
      watchers.add(check)
      check()
    })
  }

  return {
    child,
    folder,
    said,
    ended,
    until,
    /** Resolves once it serves. */
    url: async () => {
      const url = await until(/listening on (http:\S+)[\s\S]*try it/)
      return url
    },
    async stop(signal: NodeJS.Signals = 'SIGTERM') {
      child.kill(signal)
      return ended
    }
  }
}

/** One exchange, on a given connection if an agent is given. */
export async function call(
  url: string,
  agent?: Agent,
  body?: object
): Promise<{ status: number | undefined; body: string }> {
  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const headers = { 'content-type': 'application/json' }
    const sent = body ? request(url, { method: 'POST', agent, headers }, resolve) : get(url, { agent }, resolve)
    sent.on('error', reject).end(body && JSON.stringify(body))
  })
  let text = ''
  for await (const piece of response.setEncoding('utf8')) text += piece
  return { status: response.statusCode, body: text }
}
