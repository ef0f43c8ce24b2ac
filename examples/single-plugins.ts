import Fastify from 'fastify'
import gateway from '../plugins/gateway/index.ts'
import routing from '../plugins/routing/index.ts'
import echo from '../providers/echo.ts'

// The kernel, names, one provider and a layer of one's own: no HTTP, no configuration file.
const app = Fastify()
await app.register(gateway)
await app.register(routing, { models: { draft: { targets: [{ provider: 'echo', model: 'any' }] } } })
await app.register(echo, { words: 4 })

app.gateway.intercept('observe', (inference, next) => {
  inference.onSettled(outcome =>
    console.log(`${inference.route.alias} ${outcome.status}: ${inference.usage.output} tokens`)
  )
  return next(inference)
})
await app.ready()

const messages = [{ role: 'user' as const, content: 'Hello, kernel' }]
const answer = await app.gateway.complete({ model: 'draft', messages }, app.gateway.caller())
if (!answer.stream) console.log(answer.body.choices[0]?.message.content)
await app.close()
