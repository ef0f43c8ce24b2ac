// One call, looked at closely, before and between the runs: a gateway that answers nonsense quickly must not win.
import http from 'node:http'

/**
 * Sends the case's request and compares the answer byte by byte.
 *
 * @returns how many bytes the whole answer was on the wire
 * @throws with a sentence that says what was wrong
 */
export function probe({ url, headers }, { request, answer, type }) {
  return new Promise((resolve, reject) => {
    const options = { method: 'POST', agent: false, timeout: 10_000, headers: { ...headers, connection: 'keep-alive' } }
    const call = http.request(url, options, response => {
      const chunks = []
      response.on('data', chunk => chunks.push(chunk))
      response.on('error', reject)
      response.on('end', () => {
        const wire = call.socket.bytesRead
        call.destroy()
        const body = Buffer.concat(chunks)
        const got = String(response.headers['content-type'])
        if (response.statusCode !== 200)
          reject(new Error(`status ${response.statusCode}: ${String(body).slice(0, 200)}`))
        else if (!got.startsWith(type)) reject(new Error(`content-type ${got}`))
        else if (!body.equals(answer)) reject(new Error(difference(body, answer)))
        else resolve(wire)
      })
    })
    call.on('timeout', () => call.destroy(new Error('no answer within 10 s')))
    call.on('error', reject)
    call.end(request)
  })
}

function difference(body, answer) {
  let at = 0
  while (at < body.length && body[at] === answer[at]) at++
  const around = bytes => JSON.stringify(String(bytes.subarray(Math.max(0, at - 20), at + 40)))
  return `${body.length} bytes instead of ${answer.length}, first difference at ${at}: ${around(body)}, not ${around(answer)}`
}
