import type { Script } from '../../../schemas/shared.ts'

/**
 * Takes over what one process holds and has spent, and decides which of its calls may go on, one by one.
 *
 * KEYS: generation, instances, sequence of this process, then a hash for each scope. ARGV: generation, instance, number of
 * this call, 1 where a store keeps the books, how many scopes; for each scope: limit or '', base, version, held, unfolded,
 * 1 if base was just read, milliseconds to keep it (0: for ever), how many dead processes are in base, their ids, the name of
 * its period, how many other periods may hold something, their names; then how many holds; for each hold: amount, how many scopes, their places.
 *
 * A hash: `g` generation that it belongs to, `b` base and `v` its version, `ok` once a base was read in this generation,
 * `e` the other periods whose hashes hold something that counts here too, `h:<instance>` held, `u:<instance>` settled by it and not in base.
 *
 * Answers: 'ok', for each scope: spent, held, 1 if its base is good, ids of dead processes with spending of their own; then
 * for each hold: 0 granted, the place of the scope that refuses it, -1 while others are rebuilding, -2 a base is missing.
 * Or 'lost': another generation. Or 'late': a newer call of this process came first.
 */
export const hold: Script = {
  lua: `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local generation = redis.call('HMGET', KEYS[1], 'id', 'until', 'calm')
if generation[1] ~= ARGV[1] then return { 'lost' } end
local last = redis.call('GET', KEYS[3])
if last and tonumber(last) >= tonumber(ARGV[3]) then return { 'late' } end
redis.call('SET', KEYS[3], ARGV[3], 'PX', 3600000)

local me = ARGV[2]
local books = ARGV[4] == '1'
local rebuilding = now < tonumber(generation[2])
local calm = now < tonumber(generation[3])
local alive = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now), '+inf')) do alive[name] = true end

local at = 5
local function take()
  at = at + 1
  return ARGV[at]
end
local function text(number) return string.format('%.0f', number) end

local scopes = {}
for place = 1, tonumber(ARGV[5]) do
  local key = KEYS[3 + place]
  local scope = { key = key, limit = tonumber(take()) }
  local base, version, held, unfolded, fresh, ttl = take(), tonumber(take()), take(), take(), take(), tonumber(take())
  local flat = redis.call('HGETALL', key)
  local hash = {}
  for i = 1, #flat, 2 do hash[flat[i]] = flat[i + 1] end
  if hash.g ~= ARGV[1] then
    redis.call('DEL', key)
    redis.call('HSET', key, 'g', ARGV[1])
    hash = {}
  end
  if not hash.b or version > tonumber(hash.v) then
    hash.b, hash.v = base, version
    redis.call('HSET', key, 'b', base, 'v', text(version))
  end
  if fresh == '1' and not hash.ok then
    hash.ok = '1'
    redis.call('HSET', key, 'ok', '1')
  end
  for i = 1, tonumber(take()) do
    local name = take()
    if not calm and not alive[name] and name ~= me then
      redis.call('HDEL', key, 'u:' .. name)
      hash['u:' .. name] = nil
    end
  end
  local own, elders = take(), {}
  for name in string.gmatch(hash.e or '', '%S+') do elders[name] = true end
  for i = 1, tonumber(take()) do elders[take()] = true end
  scope.stem, scope.elders, scope.e = string.sub(key, 1, #key - #own), elders, hash.e
  if (hash['u:' .. me] or '0') ~= unfolded then redis.call('HSET', key, 'u:' .. me, unfolded) end
  hash['u:' .. me] = unfolded
  if (hash['h:' .. me] or '0') ~= held then redis.call('HSET', key, 'h:' .. me, held) end
  scope.mine = tonumber(held)
  scope.spent = tonumber(hash.b)
  scope.extra = 0
  scope.held = scope.mine
  scope.ok = hash.ok == '1'
  local leftovers = {}
  for field, value in pairs(hash) do
    local kind, name = string.sub(field, 1, 2), string.sub(field, 3)
    local gone = name ~= me and not calm and not alive[name]
    if kind == 'u:' then
      local amount = tonumber(value)
      if gone and not books then
        redis.call('HDEL', key, field)
        hash.b = text(tonumber(hash.b) + amount)
        redis.call('HSET', key, 'b', hash.b)
        scope.spent = tonumber(hash.b)
      else
        scope.extra = scope.extra + amount
        if gone and amount ~= 0 then leftovers[#leftovers + 1] = name end
        if gone and amount == 0 then redis.call('HDEL', key, field) end
      end
    elseif kind == 'h:' and name ~= me then
      if gone then redis.call('HDEL', key, field) else scope.held = scope.held + tonumber(value) end
    end
  end
  scope.leftovers = table.concat(leftovers, ' ')
  scope.base = hash.b
  if ttl > 0 then redis.call('PEXPIRE', key, text(ttl)) end
  scopes[place] = scope
  scopes[key] = scope
end

-- What calls hold in other periods of the same scope: with the numbers of this call, where it has them.
for place = 1, tonumber(ARGV[5]) do
  local scope = scopes[place]
  local open = {}
  scope.before, scope.also = 0, {}
  for name in pairs(scope.elders) do
    local key = scope.stem .. name
    local sum = 0
    if scopes[key] then
      scope.also[#scope.also + 1] = scopes[key]
      sum = scopes[key].held
    else
      local flat = redis.call('HGETALL', key)
      local hash = {}
      for i = 1, #flat, 2 do hash[flat[i]] = flat[i + 1] end
      if hash.g == ARGV[1] then
        for field, value in pairs(hash) do
          local instance = string.sub(field, 3)
          if string.sub(field, 1, 2) == 'h:' and (instance == me or calm or alive[instance]) then sum = sum + tonumber(value) end
        end
      end
      scope.before = scope.before + sum
    end
    if sum > 0 then open[#open + 1] = name end
  end
  table.sort(open)
  local e = table.concat(open, ' ')
  if e ~= (scope.e or '') then redis.call('HSET', scope.key, 'e', e) end
end

local function heldFor(scope)
  local sum = scope.held + scope.before
  for _, other in ipairs(scope.also) do sum = sum + other.held end
  return sum
end

local verdicts = {}
for i = 1, tonumber(take()) do
  local amount, count = tonumber(take()), tonumber(take())
  local places = {}
  local verdict = rebuilding and -1 or 0
  for n = 1, count do
    local place = tonumber(take())
    places[n] = place
    local scope = scopes[place]
    if verdict == 0 or verdict == -2 then
      if not scope.ok then verdict = -2
      elseif verdict == 0 and scope.limit and scope.spent + scope.extra + heldFor(scope) + amount > scope.limit then
        verdict = place
      end
    end
  end
  if verdict == 0 then
    for n = 1, count do
      local scope = scopes[places[n]]
      scope.held = scope.held + amount
      scope.mine = scope.mine + amount
      scope.changed = true
    end
  end
  verdicts[i] = verdict
end

local answer = { 'ok' }
for _, scope in ipairs(scopes) do
  if scope.changed then redis.call('HSET', scope.key, 'h:' .. me, text(scope.mine)) end
  answer[#answer + 1] = scope.base
  answer[#answer + 1] = text(scope.extra)
  answer[#answer + 1] = text(heldFor(scope))
  answer[#answer + 1] = scope.ok and '1' or '0'
  answer[#answer + 1] = scope.leftovers
end
for _, verdict in ipairs(verdicts) do answer[#answer + 1] = verdict end
return answer`
}
