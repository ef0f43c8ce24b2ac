import { accessSync, constants, existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { parse } from 'yaml'
import * as errors from '../schemas/errors.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (path: string) => readFileSync(join(root, path), 'utf8')
const manifest = JSON.parse(read('package.json'))
const pages = [
  'README.md',
  'CHANGELOG.md',
  'bench/README.md',
  ...readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' })
    .filter(name => name.endsWith('.md'))
    .map(name => join('docs', name))
]

/** As GitHub makes the anchor of a heading. */
function anchorsOf(page: string): string[] {
  return [...read(page).matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-')
  )
}

t.test('relative links lead somewhere', async t => {
  let links = 0
  for (const page of pages) {
    for (const [, link = ''] of read(page)
      .replace(/^```.*?^```/gms, '')
      .matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(link)) continue
      links++
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? page : relative(root, join(root, dirname(page), path))
      if (!existsSync(join(root, target))) t.fail(`${page}: ${link} is not there`)
      else if (anchor !== undefined && !anchorsOf(target).includes(anchor))
        t.fail(`${page}: ${link} has no such heading`)
    }
  }
  t.ok(links > 60)
})

t.test('every plugin and every provider has a page, and every page its subject', async t => {
  const shared = ['body', 'endpoint', 'faults', 'media', 'recall', 'sse', 'stream', 'tokens', 'upstream', 'wires']
  for (const kind of ['plugins', 'providers']) {
    const subjects = readdirSync(join(root, kind))
      .map(name => name.replace(/\.ts$/, ''))
      .filter(name => !shared.includes(name))
    const described = readdirSync(join(root, 'docs', kind)).map(name => name.replace(/\.md$/, ''))
    t.same(described.sort(), subjects.sort(), kind)
    for (const name of subjects) t.match(read('docs/README.md'), `](${kind}/${name}.md)`)
  }
})

t.test('the page on providers shows the example that test/package.test.ts runs', async t => {
  for (const name of ['provider.ts', 'provider.test.ts'])
    t.ok(read('docs/writing-a-provider.md').includes(`\`\`\`ts\n${read(`examples/provider/${name}`)}\`\`\`\n`), name)
})

t.test('every decision is listed', async t => {
  const files = readdirSync(join(root, 'docs/decisions')).filter(name => name !== 'README.md')
  for (const name of files) t.match(read('docs/decisions/README.md'), `](${name})`)
})

t.test('docs/errors.md has every fault as it is', async t => {
  const rows = read('docs/errors.md').split('\n')
  for (const [name, Fault] of Object.entries(errors)) {
    if (typeof Fault !== 'function' || !/^[A-Z]/.test(name)) continue
    const fault = new (Fault as errors.Fault)()
    const row = rows.find(row => new RegExp(`^\\| \`${name}\`[ :]`).test(row))
    if (row === undefined) {
      t.fail(`${name} is missing`)
      continue
    }
    const [, status, type, code, retry, inProcess] = row.split(' | ')
    t.equal(inProcess?.replace(/ \|$/, ''), `\`${fault.code}\``, name)
    t.equal(type, `\`${fault.type}\``, name)
    if (name === 'UpstreamRejected') continue
    t.equal(status, String(fault.statusCode), name)
    t.equal(code, fault.wire === null ? 'null' : `\`${fault.wire}\``, name)
    if (fault.headers['x-should-retry'] === 'false') t.match(retry, /^no/, name)
    else t.match(retry, /^yes/, name)
  }
})

t.test('npm commands in the pages exist', async t => {
  for (const page of pages) {
    for (const [command, script = ''] of read(page).matchAll(/npm (?:run ([\w:]+)|start|test)\b/g)) {
      t.ok(manifest.scripts[script || command.slice(4)], `${page}: ${command}`)
    }
  }
})

t.test('the Dockerfile copies and starts what there is', async t => {
  const dockerfile = read('Dockerfile')
  const ignored = read('.dockerignore').split('\n')
  for (const [, names = ''] of dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)) {
    for (const name of names.split(' ')) {
      t.ok(existsSync(join(root, name)), name)
      t.notOk(ignored.includes(name), name)
    }
  }
  t.match(dockerfile, `CMD ["node", "${manifest.bin['fastify-model-gateway']}"]`)
  t.match(dockerfile, /^USER node$/m)
  const version = /^FROM node:(\d+\.\d+)-slim/m.exec(dockerfile)?.[1]
  t.equal(version, /^\d+\.\d+/.exec(manifest.devDependencies.node)?.[0], 'the runtime that the tests run on')
  for (const name of ['.env', 'gateway.yaml', '**/node_modules', '.git']) t.ok(ignored.includes(name), name)
})

t.test('compose.yaml', async t => {
  const { services, volumes, networks } = parse(read('compose.yaml'))
  const published: string[] = Object.values<{ ports?: string[] }>(services).flatMap(({ ports }) => ports ?? [])
  t.same(published, ['127.0.0.1:8080:8080'], 'only the gateway is published, and only to this machine')
  t.match(services.gateway.environment.ADMIN_TOKEN, /^\$\{ADMIN_TOKEN:\?/)
  for (const [name, service] of Object.entries<Record<string, string[]>>(services)) {
    t.ok(name === 'gateway' ? service['build'] : /:[\w.-]*\d/.test(String(service['image'])), `${name} is pinned`)
    if (!['gateway', 'collector'].includes(name)) t.ok(service['healthcheck'], `${name} has a health check`)
    for (const network of service['networks'] ?? []) t.ok(network in networks, `${name}: ${network}`)
    for (const mount of service['volumes'] ?? []) {
      const [source = ''] = mount.split(':')
      t.ok(source.startsWith('.') ? existsSync(join(root, source)) : source in volumes, `${name}: ${source}`)
    }
  }
  for (const name of Object.keys(services.gateway.depends_on)) t.ok(name in services, name)
  const collector = parse(read('examples/compose/collector.yaml'))
  for (const { receivers, exporters } of Object.values<Record<string, string[]>>(collector.service.pipelines)) {
    for (const name of receivers ?? []) t.ok(name in collector.receivers, name)
    for (const name of exporters ?? []) t.ok(name in collector.exporters, name)
  }
})

t.test('.ci/run can be started', async t => {
  t.doesNotThrow(() => accessSync(join(root, '.ci/run'), constants.X_OK))
})
