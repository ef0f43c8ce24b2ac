import type { FastifyBodyParser } from 'fastify'

/** A name that may be refused, as written; an escape may spell it too, and always begins with \u00. */
const forbidden = /"(?:__proto__|constructor)"/

/** Looks closely only at bodies that could hold a forbidden key: the careful parser takes twice as long as JSON.parse. */
export function jsonParser(careful: FastifyBodyParser<string>): FastifyBodyParser<string> {
  return (request, body, done) => {
    if (body === '' || forbidden.test(body) || body.includes('\\u00')) {
      return careful(request, body, done)
    }
    let parsed: unknown
    try {
      parsed = JSON.parse(body)
    } catch {
      return careful(request, body, done)
    }
    done(null, parsed)
  }
}

export function serialize(payload: unknown): string {
  return JSON.stringify(payload)
}
