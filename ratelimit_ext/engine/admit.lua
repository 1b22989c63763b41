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
-- For each charge: strategy, part, cost, its first argument, whether it fits, and what else the check
-- returned; false if it is idle: it denies nothing, and takes nothing.
local reply, charges = { now, 1 }, {}
local denied, banned = false, false
local cursor = 1

for i = 1, #KEYS do
  local strategy, cost, arg = strategies[words[cursor]], words[cursor + 2], cursor + 3
  local place, charge = 4 * i, false
  bucket = KEYS[i]
  if strategy.idle and not raws[i] then
    reply[place - 1], reply[place], reply[place + 1], reply[place + 2] = 1, 0, strategy.idle, 0
  else
    local part = words[cursor + 1]
    charge = { strategy, part, cost, arg, strategy.check(raws[i], now, cost, arg) }
    if cost == 0 then charge[5] = true end -- a look is never denied
    if not charge[5] then
      local role = string.sub(part, 1, 1)
      denied = denied or role == 'e' or role == 'm'
      banned = banned or role == 'm'
    end
    reply[place - 1], reply[place] = charge[5] and 1 or 0, charge[6]
    reply[place + 1], reply[place + 2] = charge[7], charge[8]
  end
  charges[i] = charge
  cursor = arg + strategy.arguments
end

if denied then reply[2] = 0 end
if ARGV[2] ~= '1' then return reply end

local function wanted(strategy, part, fits)
  if part == 'e' then return not denied end
  if part == 's' then return fits and not (denied and strategy.reserve) end
  if not fits or not denied or banned then return false end
  if #part == 1 then return true end
  for position in string.gmatch(part, '%d+') do
    local trigger = charges[tonumber(position)]
    if trigger and not trigger[5] then return true end
  end
  return false
end

-- The new value of charge i's bucket and its lifetime, or nil if it does not change; with an offset, if
-- the value is a part of it. For each charge once, as holds are changed in place.
local function change_of(i)
  local charge = charges[i]
  if not charge then return nil end
  local strategy, part, cost, arg, fits = unpack(charge, 1, 5)
  local taken = wanted(strategy, part, fits)
  local value, offset, lifetime
  bucket = KEYS[i]
  if taken and cost > 0 then
    if strategy.patch then
      value, offset, lifetime = strategy.patch(raws[i], now, cost, arg, unpack(charge, 6))
    end
    value = value or strategy.take(now, cost, arg, unpack(charge, 6))
  else
    if strategy.from_future(raws[i], now, arg) then
      value = strategy.take(now, 0, arg, unpack(charge, 6))
    end
    if taken and not denied and strategy.reserve then
      value = strategy.reserve(value or raws[i], now, arg) or value
    end
  end
  if value then return value, lifetime or strategy.lifetime(value, now, arg), offset end
end

-- Store what a full server may: the value of charge i, which is the first, and those of the others.
-- Returns the position of the first charge that it cannot take, and writes nothing then; or nil.
local function store_if_known(i, value, lifetime, offset)
  local BRIEF = 60000000
  local function identity_of(key) return string.match(key, '{[^{]*}$') or key end
  local known = { ['{*}'] = true } -- the identity of limits for everyone
  for position, charge in ipairs(charges) do
    if charge and raws[position] and not charge[1].ends_with_calls then
      local _, left = pcall(charge[1].lifetime, raws[position], now, charge[4])
      if type(left) == 'number' and left > BRIEF then known[identity_of(KEYS[position])] = true end
    end
  end
  local changes = {}
  for position = i, #KEYS do
    if position > i then value, lifetime, offset = change_of(position) end
    if value then
      local charge, key = charges[position], KEYS[position]
      if lifetime <= BRIEF or charge[1].ends_with_calls or known[identity_of(key)] then
        changes[#changes + 1] = { key, value, lifetime, offset }
      elseif charge[2] == 'e' then
        return position
      end
    end
  end
  for _, change in ipairs(changes) do store(unpack(change, 1, 4)) end
end

local begun = false
for i = 1, #KEYS do
  local value, lifetime, offset = change_of(i)
  if value then
    if begun or lifetime <= 0 then
      store(KEYS[i], value, lifetime, offset)
    elseif not try_store(KEYS[i], value, lifetime, offset) then
      local refused = store_if_known(i, value, lifetime, offset)
      if refused then return { now, -refused } end
      break
    end
    begun = true
  end
end
return reply
