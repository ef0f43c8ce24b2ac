// Who is compared. A contender says how it is started, which headers it needs and where it says that it is ready.
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { available, gateways } from './gateway.mjs'
import { portkey } from './portkey.mjs'
import { freePort, node, ready, run, start, stop } from './processes.mjs'

/** A relay with the variants of relay.mjs; without, with its defaults, the fastest. */
export function relay(name, title, ...variants) {
  return {
    name,
    title,
    ready: '/health',
    start: ({ port, upstream }) => ({
      args: [join(import.meta.dirname, 'relay.mjs'), String(port), upstream, ...variants]
    }),
    headers: () => ({})
  }
}

export function contenders(flags) {
  // What most people would write, on undici's `request`; and the fastest relay that can be written, on its `dispatch`.
  const bare = relay('relay', 'bare relay', 'text', 'send')
  const tuned = relay('tuned', 'tuned relay', 'dispatch', 'dispatch')
  return [bare, tuned, ...(available ? gateways : []), ...(flags.portkey ? [portkey] : [])]
}

/** Starts a contender before the upstream with this base URL, and waits until it is ready. */
export async function launch(contender, upstream, scratch) {
  const { child, origin } = await spawn(contender, upstream, scratch)
  await ready(child, origin + contender.ready)
  return {
    contender,
    pid: child.pid,
    url: `${origin}/v1/chat/completions`,
    headers: headersFor(contender, upstream),
    stop: limit => stop(child, limit)
  }
}

/** Milliseconds from the start of the process to its first 200. */
export async function startUp(contender, upstream, scratch) {
  const { child, origin, started } = await spawn(contender, upstream, scratch)
  try {
    await ready(child, origin + contender.ready, 20_000, 2)
    return performance.now() - started
  } finally {
    await stop(child)
  }
}

let launches = 0

async function spawn(contender, upstream, scratch) {
  const port = await freePort()
  const { args, cwd, env } = prepare(contender, port, upstream, scratch)
  const started = performance.now()
  return { child: start('contender', node, args, { cwd, env }), origin: `http://127.0.0.1:${port}`, started }
}

function prepare(contender, port, upstream, scratch) {
  const directory = join(scratch, `${contender.name}-${launches++}`)
  mkdirSync(directory)
  return { cwd: directory, ...contender.start({ port, upstream, directory }) }
}

/** What this gateway's configuration asks for and its code does not do yet: a column must not promise it. */
export async function missing(contender, scratch) {
  const { args, cwd } = prepare(contender, 1, 'http://127.0.0.1:1/v1', scratch)
  const output = await run('load', node, [...args, '--check'], 20_000, { cwd })
  return [...output.matchAll(/^note: (\S+) .*not built yet/gm)].map(([, path]) => path)
}

/** The upstream itself, without anybody between. */
export function direct(upstream) {
  return {
    contender: { name: 'direct', title: 'direct' },
    pid: null,
    url: `${upstream}/chat/completions`,
    headers: headersFor({ headers: () => ({}) }, upstream),
    stop: async () => {}
  }
}

function headersFor(contender, upstream) {
  return { 'content-type': 'application/json', authorization: 'Bearer bench', ...contender.headers(upstream) }
}
