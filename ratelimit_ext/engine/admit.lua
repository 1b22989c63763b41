-- Decide all charges of a request, then take all of them or none.
--
-- KEYS     one bucket per charge, each once
-- ARGV     now in microseconds, or '' for the server's clock; '1' to take, '0' to look only; a JSON list
--          of words, and in it for each charge: the strategy's code; its part (below), and what follows
--          it; the strategy's own arguments; a JSON list of numbers, and in it for each charge: the cost,
--          and what its part adds; optional: the id of the call's hold, and its lease in microseconds; for
--          how many microseconds a request that may wait has waited, or ''; 1 if its costs count as spent
--          until a renewal knows better, or ''; what the call reserves, by which members have their turns
-- returns  a flat list: now; 1 where the request is admitted, else 0; for each charge 1 where it
--          fits, else 0, and the three integers of the strategy's snapshot, before anything is taken.
--          At the end, for each charge that claims a part of a budget: what it gets, 0 if it is denied,
--          -1 if only other calls' holds deny it; and the number of those calls. If a full server
--          cannot store the bucket of charge i: now and -i
--
-- Parts: 'e' enforced: its denial denies the request. 's' shadow: denies nothing, and is taken if it
-- fits and the request is admitted. Either may be followed by '=', which adds what is taken instead of
-- the cost, which has to fit all the same, or by '>', which adds the four numbers of what it claims (see
-- reservations.lua). 'm' meta: its denial denies, and it is taken when one of the charges whose positions
-- follow it ('1,3', or '' for any) denied the request. 'n': a meta in shadow, which denies nothing.
--
-- A charge that is not taken writes nothing, with three exceptions. A request that may wait gets a place
-- in each line that denies it, if nothing else denies it, and loses the others. An admitted call whose
-- estimate is 0 leaves a hold, if it has a lease, so that its real cost can be charged. And if a bucket's
-- time lies in the future (a clock was set back), or the limit of a token bucket has changed, the bucket
-- is brought to now without taking anything.
--
-- A full server (maxmemory) refuses to store more. It still serves known identities: those with one of
-- these buckets stored for longer than BRIEF. It also stores buckets for up to BRIEF, and those that
-- end with their calls, as they soon free their memory. A request with an unknown identity is not
-- admitted.

begin(ARGV[3])
if ARGV[4] ~= list_of_numbers then numbers, list_of_numbers = cjson.decode(ARGV[4]), ARGV[4] end
hold, lease, waited, keeps, price = 0, 0, nil, false, 0
if ARGV[5] then
  hold, lease, waited = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
  keeps, price = tonumber(ARGV[8]) == 1, tonumber(ARGV[9]) or 0
end
local now = present_instant(ARGV[1])
local raws = redis.call('MGET', unpack(KEYS))
-- States: what a check leaves for its take. A table is copied each time that it grows: here is room.
local reply, states = { now, 1, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil }, { nil, nil, nil }
local denied, banned, waits = false, false, waited and ARGV[2] == '1'
local cursor, number, ending = 1, 1, 2 + 4 * #KEYS

for i = 1, #KEYS do
  local strategy, part, more = strategies[words[cursor]], words[cursor + 1], words[cursor + 2]
  local arg, place, raw, cost, claim = cursor + 3, 4 * i, raws[i], numbers[number], nil
  number = number + 1
  if more == '>' then
    claim, number = { unpack(numbers, number, number + 3) }, number + 4
  elseif more == '=' then
    number = number + 1
  end
  if strategy.idle and not raw then
    reply[place - 1], reply[place], reply[place + 1], reply[place + 2] = 1, 0, strategy.idle, 0
  else
    bucket, current = KEYS[i], strategy
    local fits, x, y, z, state = strategy.check(raw, now, cost, arg, claim)
    if claim then
      reply[ending + 1], reply[ending + 2], ending = state.granted, state.others, ending + 2
    end
    reply[place - 1], reply[place], reply[place + 1], reply[place + 2] = 1, x, y, z
    if not fits and (cost > 0 or more == '=') then -- a look is never denied
      local is_denied = part == 'e' or part == 'm'
      denied = denied or is_denied
      banned = banned or part == 'm'
      waits = waits and (not is_denied or strategy.may_wait and strategy.may_wait(state))
      reply[place - 1] = 0
    end
    -- Shadows of a member's share and of its group, right before it: both are made, or none.
    if part == 's' and (strategy.of or strategy) == strategies.fm then
      local both = math.min(reply[place - 1], reply[place - 5])
      reply[place - 1], reply[place - 5] = both, both
    end
    if state then states[i] = state end
  end
  cursor = arg + strategy.arguments
end

if denied then reply[2] = 0 end
if ARGV[2] == '0' then return reply end

local stored, unstored = false, nil -- unstored: the changes from the first that a full server refused
local cursor, number = 1, 1
for i = 1, #KEYS do
  local strategy, part, more = strategies[words[cursor]], words[cursor + 1], words[cursor + 2]
  local arg, raw, cost = cursor + 3, raws[i], numbers[more == '=' and number + 1 or number]
  number = number + (more == '>' and 5 or more == '=' and 2 or 1)
  if raw or not strategy.idle then -- an idle guard has nothing to store
    local place, state = 4 * i, states[i]
    local fits, taken = reply[place - 1] == 1, false
    if part == 'e' or part == 's' then
      taken = fits and not denied
    elseif fits and denied and not banned then
      taken = more == ''
      for position in string.gmatch(more, '%d+') do taken = taken or reply[4 * position - 1] == 0 end
    end

    bucket, current = KEYS[i], strategy
    local x, y, z, value, offset, lifetime = reply[place], reply[place + 1], reply[place + 2]
    if denied and waits and part == 'e' and strategy.place then strategy.place(now, arg, state, fits) end
    if taken and cost > 0 then
      if strategy.patch then
        value, offset, lifetime = strategy.patch(now, cost, arg, x, y, state)
      end
      if not value then value, lifetime = strategy.take(now, cost, arg, x, y, z, state) end
    else
      if strategy.is_stale(raw, now, arg) then
        value, lifetime = strategy.take(now, 0, arg, x, y, z, state)
      end
      if taken and not denied and strategy.reserve then
        local held, longer = strategy.reserve(value or raw, now, arg)
        if held then value, lifetime = held, longer end
      end
    end

    if value then
      lifetime = lifetime or strategy.lifetime(value, now, arg)
      if unstored or not stored and lifetime > 0 and not try_store(bucket, value, lifetime, offset) then
        unstored = unstored or {}
        unstored[#unstored + 1] = { i, strategy, part, value, lifetime, offset }
      else
        if stored or lifetime <= 0 then store(bucket, value, lifetime, offset) end -- else it is stored
        stored = true
      end
    end
  end
  cursor = arg + strategy.arguments
end
if not unstored then return reply end

-- The server is full, and nothing is written yet. Store what a full server may, or nothing.
local BRIEF = 60000000
local function identity_of(key) return string.match(key, '{[^{]*}$') or key end
local known = { ['{*}'] = true } -- the identity of limits for everyone
local cursor = 1
for i = 1, #KEYS do
  local strategy = strategies[words[cursor]]
  current = strategy
  if raws[i] and not strategy.ends_with_calls then
    local _, left = pcall(strategy.lifetime, raws[i], now, cursor + 3)
    if type(left) == 'number' and left > BRIEF then known[identity_of(KEYS[i])] = true end
  end
  cursor = cursor + 3 + strategy.arguments
end
local changes = {}
for _, change in ipairs(unstored) do
  local i, strategy, part, _, lifetime = unpack(change, 1, 5)
  if lifetime <= BRIEF or strategy.ends_with_calls or known[identity_of(KEYS[i])] then
    changes[#changes + 1] = change
  elseif part == 'e' then
    return { now, -i }
  end
end
for _, change in ipairs(changes) do
  local i, _, _, value, lifetime, offset = unpack(change, 1, 6)
  store(KEYS[i], value, lifetime, offset)
end
return reply
