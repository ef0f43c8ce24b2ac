// What a large image costs in memory: `node bench/image.mjs [SERVER]`. A gateway in a process of its own forwards one body of
// 10 MB, a data URL, to an upstream that reads it; how far its resident memory goes above what it had is read from the
// kernel's own mark. Linux only. Warmed with small calls, each round a new process.
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { server } from './gateway.mjs'

const size = 10_000_000
const rounds = 5
const directory = mkdtempSync(join(tmpdir(), 'gateway-bench-image-'))

const answer = JSON.stringify({
  id: 'c',
  object: 'chat.completion',
  created: 1,
  model: 'm',
  choices: [{ index: 0, message: { role: 'assistant', content: 'A cat.' }, finish_reason: 'stop' }],
  usage: { prompt_tokens: 9, completion_tokens: 3, total_tokens: 12 }
})
let received = 0
const upstream = createServer((request, response) => {
  received = 0
  request.on('data', chunk => {
    received += chunk.length
  })
  request.on('end', () => response.writeHead(200, { 'content-type': 'application/json' }).end(answer))
})
await new Promise(resolve => upstream.listen(0, '127.0.0.1', resolve))

function body(length) {
  const ask = data => ({
    model: 'up/m',
    messages: [
      {
        role: 'user',
        content: [
          { type: 'text', text: 'What is this?' },
          { type: 'image_url', image_url: { url: `data:image/png;base64,${data}` } }
        ]
      }
    ]
  })
  return JSON.stringify(ask('A'.repeat(length - JSON.stringify(ask('')).length)))
}

/** kB of one line of /proc/PID/status. */
function statusOf(pid, name) {
  return Number(new RegExp(`${name}:\\s+(\\d+)`).exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
}

async function round() {
  const file = join(directory, 'gateway.json')
  const { port } = upstream.address()
  writeFileSync(
    file,
    JSON.stringify({
      server: { port: 0, bodyLimit: '11mb' },
      log: { level: 'silent' },
      store: false,
      providers: { up: { type: 'openai-compatible', baseUrl: `http://127.0.0.1:${port}/v1` } },
      plugins: { rateLimit: false, budgets: { unpriced: 'allow' } },
      tenants: { public: { maxRequestUsd: false } }
    })
  )
  const child = spawn(process.execPath, [server, '--config', file], {
    cwd: directory,
    stdio: ['ignore', 'ignore', 'pipe']
  })
  try {
    let said = ''
    const url = await new Promise((resolve, reject) => {
      child.once('exit', () => reject(new Error(said)))
      child.stderr.on('data', text => {
        said += text
        const found = /listening on (http:\S+)/.exec(said)?.[1]
        if (found !== undefined) resolve(found)
      })
    })
    const headers = { 'content-type': 'application/json' }
    const ask = text => fetch(`${url}/v1/chat/completions`, { method: 'POST', headers, body: text })
    const small = body(2_000)
    for (let call = 0; call < 200; call++) await (await ask(small)).text()
    await sleep(300)
    const large = body(size)
    writeFileSync(`/proc/${child.pid}/clear_refs`, '5')
    const before = statusOf(child.pid, 'VmRSS')
    const reply = await ask(large)
    await reply.text()
    if (reply.status !== 200 || received < size) throw new Error(`${reply.status}, ${received} bytes arrived`)
    return (statusOf(child.pid, 'VmHWM') - before) / 1_024
  } finally {
    child.kill()
  }
}

const extra = []
for (let number = 0; number < rounds; number++) extra.push(await round())
extra.sort((a, b) => a - b)
const [least, median, most] = [extra[0], extra[rounds >> 1], extra.at(-1)].map(value => value.toFixed(1))
console.log(`an image of 10 MB takes ${median} MB besides (${least} to ${most})`)
upstream.close()
rmSync(directory, { recursive: true, force: true })
