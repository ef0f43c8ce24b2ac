// The provider, as nginx: one worker in the foreground, static answers from memory or from the page cache.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cases } from './payloads.mjs'

/** Writes configuration and answers below `directory`; returns the arguments to start nginx with. */
export function nginx(directory, port) {
  mkdirSync(join(directory, 'answers'), { recursive: true })
  for (const { name, answer } of cases) writeFileSync(join(directory, 'answers', name), answer)
  const file = join(directory, 'nginx.conf')
  writeFileSync(file, configuration(directory, port))
  return ['-p', directory, '-c', file, '-e', join(directory, 'error.log')]
}

function configuration(directory, port) {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
  return `
daemon off;
master_process off;
pid ${directory}/nginx.pid;
error_log ${directory}/error.log error;
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
  ${temporary.map(name => `${name}_temp_path ${directory}/${name};`).join('\n  ')}
  access_log off;
  server_tokens off;
  etag off;
  max_ranges 0;
  keepalive_requests 1000000000;
  keepalive_timeout 60s;
  client_max_body_size 16m;
  client_body_buffer_size 2m;
  tcp_nodelay on;
  open_file_cache max=16 inactive=1h;
  open_file_cache_valid 1h;
  output_buffers 1 64k;
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location = /health { return 200 'ok'; }
    location ~ ^/v1/(traces|metrics)$ { default_type application/x-protobuf; return 200; }
    ${cases.map(one => location(directory, one)).join('\n    ')}
  }
}
`
}

/** `return` where the answer fits a token of nginx's configuration; a file, to which POST is led by way of its 405, elsewhere. */
function location(directory, { name, type, answer }) {
  const path = `/${name}/v1/chat/completions`
  if (answer.length < 2_000) return `location = ${path} { default_type ${type}; return 200 '${quoted(answer)}'; }`
  // The substitution never matches: it makes nginx send the stream without a length, as providers do.
  const chunked =
    type === 'text/event-stream'
      ? "sub_filter_types text/event-stream; sub_filter '<never>' '';"
      : 'sendfile on; tcp_nopush on;'
  return `location = ${path} { alias ${directory}/answers/${name}; error_page 405 =200 $uri; default_type ${type}; ${chunked} }`
}

function quoted(answer) {
  return String(answer).replace(/[\\']/g, '\\$&')
}
