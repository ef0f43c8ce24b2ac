// Portkey's gateway as npm delivers it, without its web page. It takes the provider from headers.
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const loopback = pathToFileURL(join(import.meta.dirname, 'loopback.mjs')).href
const server = join(import.meta.dirname, 'node_modules/@portkey-ai/gateway/build/start-server.js')

export const portkey = {
  name: 'portkey',
  title: 'Portkey 1.15.2',
  ready: '/',
  start: ({ port }) => ({
    args: ['--import', loopback, server, `--port=${port}`, '--headless'],
    env: { TRUSTED_CUSTOM_HOSTS: '127.0.0.1' }
  }),
  headers: upstream => ({ 'x-portkey-provider': 'openai', 'x-portkey-custom-host': upstream })
}
