import OpenAI from 'openai'

// Nothing changes but the base URL. A gateway on this machine that nobody has a key for takes any.
const client = new OpenAI({
  baseURL: process.env['GATEWAY_URL'] ?? 'http://127.0.0.1:8080/v1',
  apiKey: process.env['GATEWAY_KEY'] ?? 'none'
})
const messages = [{ role: 'user' as const, content: 'Hello, gateway' }]
const stream = await client.chat.completions.create({ model: 'echo/echo', messages, stream: true })
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? '')
process.stdout.write('\n')
