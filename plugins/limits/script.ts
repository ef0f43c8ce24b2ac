import type { Script } from '../../schemas/shared.ts'

/** Fields of one scope's counters in an answer: requests, requestsBefore, tokens, tokensBefore, running. */
export const countersPerScope = 5

/**
 * A batch of work on the counters of some tenants and keys, whose names are KEYS. Time is Redis's own.
 *
 * ARGV: this instance, how many others live, their ids, then for each key the calls that run here, then work:
 * `a`, tokens and twice a scope (its place in KEYS or 0, requests, tokens and calls that it may have; -1: no limit) asks for
 * a call; `c`, place, minute and difference corrects the tokens that a call was counted for.
 *
 * The answer: the minute and how far it is in milliseconds, then for each `a` whether it was let in and the counters of its
 * two scopes as they are then.
 */
export const admitScript: Script = {
  lua: `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = math.floor(now / 60000)
local elapsed = now - window * 60000
local mine = 'c:' .. ARGV[1]
local others = tonumber(ARGV[2])
local at = 3 + others
local scopes = {}
for i = 1, #KEYS do
  local fields = { 'w', 'r', 'rb', 't', 'tb' }
  for j = 1, others do fields[5 + j] = 'c:' .. ARGV[2 + j] end
  local read = redis.call('HMGET', KEYS[i], unpack(fields))
  local seen = tonumber(read[1]) or window
  local scope = { r = tonumber(read[2]) or 0, rb = tonumber(read[3]) or 0, t = tonumber(read[4]) or 0, tb = tonumber(read[5]) or 0 }
  if seen == window - 1 then
    scope.rb = scope.r
    scope.tb = scope.t
    scope.r = 0
    scope.t = 0
  elseif seen < window then
    scope.r = 0
    scope.rb = 0
    scope.t = 0
    scope.tb = 0
  end
  scope.elsewhere = 0
  for j = 1, others do scope.elsewhere = scope.elsewhere + (tonumber(read[5 + j]) or 0) end
  scope.running = tonumber(ARGV[at])
  scopes[i] = scope
  at = at + 1
end

local function fits(limit, current, before, cost)
  if limit < 0 then return true end
  return current + before * (1 - elapsed / 60000) + cost <= limit + 1e-6
end

local function room(place, requests, tokens, calls, cost)
  if place == 0 then return true end
  local s = scopes[place]
  return fits(requests, s.r, s.rb, 1) and fits(tokens, s.t, s.tb, cost)
    and (calls < 0 or s.running + s.elsewhere < calls)
end

local function take(place, cost)
  if place == 0 then return end
  local s = scopes[place]
  s.r = s.r + 1
  s.t = s.t + cost
  s.running = s.running + 1
end

local out = { window, elapsed }
local function tell(place)
  local s = scopes[place] or { r = 0, rb = 0, t = 0, tb = 0, running = 0, elsewhere = 0 }
  out[#out + 1] = s.r
  out[#out + 1] = s.rb
  out[#out + 1] = s.t
  out[#out + 1] = s.tb
  out[#out + 1] = s.running + s.elsewhere
end

while at <= #ARGV do
  if ARGV[at] == 'a' then
    local n = {}
    for j = 1, 9 do n[j] = tonumber(ARGV[at + j]) end
    local cost = n[1]
    if room(n[2], n[3], n[4], n[5], cost) and room(n[6], n[7], n[8], n[9], cost) then
      take(n[2], cost)
      take(n[6], cost)
      out[#out + 1] = 1
    else
      out[#out + 1] = 0
    end
    tell(n[2])
    tell(n[6])
    at = at + 10
  else
    local s = scopes[tonumber(ARGV[at + 1])]
    local taken = tonumber(ARGV[at + 2])
    local difference = tonumber(ARGV[at + 3])
    if difference > 0 or taken == window then
      s.t = math.max(0, s.t + difference)
    elseif taken == window - 1 then
      s.tb = math.max(0, s.tb + difference)
    end
    at = at + 4
  end
end

for i = 1, #KEYS do
  local s = scopes[i]
  redis.call('HSET', KEYS[i], 'w', window, 'r', s.r, 'rb', s.rb, 't', s.t, 'tb', s.tb)
  if s.running > 0 then redis.call('HSET', KEYS[i], mine, s.running) else redis.call('HDEL', KEYS[i], mine) end
  redis.call('PEXPIRE', KEYS[i], (s.running + s.elsewhere > 0) and 3600000 or 120000)
end
return out
`
}
