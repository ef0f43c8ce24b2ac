// Ends what the bench started, even when the bench itself is killed: reads `+PID` and `-PID` lines, and when its input
// closes it kills every process it was told of and not told off.
import { createInterface } from 'node:readline'

const running = new Set()
process.on('SIGINT', () => {})
process.on('SIGTERM', () => {})
for await (const line of createInterface({ input: process.stdin })) {
  const pid = Number(line.slice(1))
  if (line[0] === '+') running.add(pid)
  else running.delete(pid)
}
for (const pid of running) {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {}
}
