import Fastify from 'fastify'
// In an app of your own: from 'fastify-model-gateway'
import modelGateway from '../app.ts'

const app = Fastify()
await app.register(modelGateway, { prefix: '/llm', providers: { echo: { type: 'echo' } } })

// The same models, tenants and budgets as POST /llm/v1/chat/completions, without a network in between.
app.get<{ Querystring: { text: string } }>('/summary', async request => {
  const messages = [{ role: 'user' as const, content: `Summarise: ${request.query.text}` }]
  const answer = await app.gateway.complete({ model: 'echo/echo', messages }, app.gateway.caller())
  return answer.stream ? null : answer.body.choices[0]?.message.content
})

console.log(await app.listen({ port: Number(process.env['PORT'] ?? 3000) }))
