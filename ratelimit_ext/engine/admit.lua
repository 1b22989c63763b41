-- Decide all charges of a request, then take all of them or none.
--
-- KEYS     one bucket per charge, each once
-- ARGV     now in microseconds, or '' for the server's clock; '1' to take, '0' to look only; a JSON list
--          of words, and in it for each charge: the strategy's code; its part (below); the cost; the
--          strategy's own arguments
-- returns  a flat list: now; 1 where the request is admitted, else 0; for each charge 1 where it
--          fits, else 0, and the three integers of the strategy's snapshot, before anything is taken.
--          If a full server cannot store the bucket of charge i: now and -i
--
-- Parts: 'e' enforced: its denial denies the request. 's' shadow: denies nothing, and is taken if it
-- fits, even if the request is denied; with reservations only if it is admitted, as a denied request
-- is never settled. 'm' meta: its denial denies, and it is taken when one of the charges whose
-- positions follow it ('m1,3', or just 'm' for any) denied the request. 'n': a meta in shadow, which
-- denies nothing.
--
-- A charge that is not taken writes nothing, with two exceptions. An admitted call whose estimate is 0
-- leaves a hold, if it has a lease, so that its real cost can be charged. And if a bucket's time lies
-- in the future (a clock was set back), it is brought to now without taking anything.
--
-- A full server (maxmemory) refuses to store more. It still serves known identities: those with one of
-- these buckets stored for longer than BRIEF. It also stores buckets for up to BRIEF, and those that
-- end with their calls, as they soon free their memory. A request with an unknown identity is not
-- admitted.

read_words(ARGV[3])
local now = present_instant(ARGV[1])
local raws = redis.call('MGET', unpack(KEYS))
local reply, checked = { now, 1 }, {}
local denied, banned = false, false
local cursor = 1

for i = 1, #KEYS do
  local strategy = strategies[words[cursor]]
  local part, cost, arg = words[cursor + 1], words[cursor + 2], cursor + 3
  local charge = {
    strategy = strategy, part = part, cost = cost, arg = arg,
    strategy.check(raws[i], now, cost, arg),
  }
  if cost == 0 then charge[1] = true end -- a look is never denied
  checked[i] = charge
  if not charge[1] then
    local role = string.sub(part, 1, 1)
    denied = denied or role == 'e' or role == 'm'
    banned = banned or role == 'm'
  end
  local place = 4 * i
  reply[place - 1], reply[place] = charge[1] and 1 or 0, charge[2]
  reply[place + 1], reply[place + 2] = charge[3], charge[4]
  cursor = arg + strategy.arguments
end

local function triggered(part)
  if #part == 1 then return true end
  for position in string.gmatch(part, '%d+') do
    if not checked[tonumber(position)][1] then return true end
  end
  return false
end

local function wanted(charge)
  if charge.part == 'e' then return not denied end
  if charge.part == 's' then return charge[1] and not (denied and charge.strategy.reserve) end
  return charge[1] and denied and not banned and triggered(charge.part)
end

-- The new value of charge i's bucket and its lifetime, or nil if it does not change.
local function change_of(i)
  local charge, value = checked[i], nil
  local strategy, cost, arg = charge.strategy, charge.cost, charge.arg
  local taken = wanted(charge)
  if taken and cost > 0 then
    value = strategy.take(now, cost, arg, unpack(charge, 2))
  else
    if strategy.from_future(raws[i], now, arg) then
      value = strategy.take(now, 0, arg, unpack(charge, 2))
    end
    if taken and not denied and strategy.reserve then
      value = strategy.reserve(value or raws[i], now, arg) or value
    end
  end
  if value then return value, strategy.lifetime(value, now, arg) end
end

local BRIEF = 60000000

local function identity_of(key) return string.match(key, '{[^{]*}$') or key end

-- Store what a full server may. Returns the position of the first charge that it cannot take, and
-- writes nothing then; or nil.
local function store_if_known()
  local known = { ['{*}'] = true } -- the identity of limits for everyone
  for i = 1, #KEYS do
    local charge = checked[i]
    if raws[i] and not charge.strategy.ends_with_calls then
      local _, left = pcall(charge.strategy.lifetime, raws[i], now, charge.arg)
      if type(left) == 'number' and left > BRIEF then known[identity_of(KEYS[i])] = true end
    end
  end
  local changes = {}
  for i = 1, #KEYS do
    local value, lifetime = change_of(i)
    if value then
      local brief = lifetime <= BRIEF or checked[i].strategy.ends_with_calls
      if brief or known[identity_of(KEYS[i])] then
        changes[#changes + 1] = { KEYS[i], value, lifetime }
      elseif checked[i].part == 'e' then
        return i
      end
    end
  end
  for _, change in ipairs(changes) do store(unpack(change)) end
end

if denied then reply[2] = 0 end
if ARGV[2] == '1' then
  local begun = false
  for i = 1, #KEYS do
    local value, lifetime = change_of(i)
    if value then
      if begun or lifetime <= 0 then
        store(KEYS[i], value, lifetime)
      elseif not try_store(KEYS[i], value, lifetime) then
        local refused = store_if_known()
        if refused then return { now, -refused } end
        break
      end
      begun = true
    end
  end
end
return reply
