import type { Script } from '../../schemas/shared.ts'

/**
 * A sign of life. KEYS: generation, instances. ARGV: instance, lease, id for a new generation, how long its rebuilding
 * takes, run of the server. Milliseconds, by the clock of Redis.
 *
 * The hash `generation`: `id`; `run` of the server that has the data, since one that was started again may have old data;
 * `until` when what is rebuilt may be relied on; `calm` until when silence means nothing; `beat` the last sign of anybody.
 *
 * Answers: id, 1 while silence means nothing, 1 if others may have taken this process for dead, ids of the living.
 */
export const beat: Script = {
  lua: `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = tonumber(ARGV[2])
local id, run, calm, last = unpack(redis.call('HMGET', KEYS[1], 'id', 'run', 'calm', 'beat'))
if not id or run ~= ARGV[5] then
  id = ARGV[3]
  calm = now + lease
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'id', id, 'run', ARGV[5], 'until', string.format('%.0f', now + ARGV[4]))
  redis.call('HSET', KEYS[1], 'calm', string.format('%.0f', calm))
elseif now - tonumber(last) > lease * 0.9 then
  -- Nobody could reach this Redis for a while: the others get the time to come back.
  calm = now + lease
  redis.call('HSET', KEYS[1], 'calm', string.format('%.0f', calm))
end
redis.call('HSET', KEYS[1], 'beat', string.format('%.0f', now))
local own = redis.call('ZSCORE', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[2], string.format('%.0f', now + lease), ARGV[1])
local quiet = now < tonumber(calm)
if not quiet then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - 10 * lease)) end
local answer = { id, quiet and '1' or '0', (not own or tonumber(own) < now) and '1' or '0' }
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now), '+inf')) do
  answer[#answer + 1] = name
end
return answer`
}

/** KEYS: generation, instances. ARGV: instance. */
export const leave: Script = { lua: `return redis.call('ZREM', KEYS[2], ARGV[1])` }
