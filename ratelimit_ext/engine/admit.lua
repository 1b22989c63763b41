-- Decide all charges of a request, then take all of them or none.
--
-- KEYS     one bucket per charge, each once
-- ARGV     now in microseconds, or '' for the server's clock; '1' to take, '0' to look only; a JSON list
--          of words, and in it for each charge: the strategy's code; its part (below); the cost; the
--          strategy's own arguments
-- returns  a flat list: now; 1 where the request is admitted, else 0; for each charge 1 where it
--          fits, else 0, and the three integers of the strategy's reading, before anything is taken
--
-- Parts: 'e' enforced: its denial denies the request. 's' shadow: denies nothing, and is taken where it
-- fits, whatever the others say; but one whose costs are held only if the request is admitted, as
-- nobody settles a denied one. 'm' meta: its denial denies, and it is taken when one of the
-- charges whose positions follow it ('m1,3', or just 'm' for any) denied the request. 'n' is a meta in
-- shadow: like 'm', and denies nothing.
--
-- What is not taken is not written, with two exceptions. An admitted call whose estimate is 0 leaves
-- a hold, if it has a lease, so that its real cost can be charged. And the present of a bucket from a
-- future that only a clock set back explains is kept, with nothing taken.

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
  if cost == 0 then charge[1] = true end -- it looks, and is never denied
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
  if charge.part == 's' then return charge[1] and not (denied and charge.strategy.note) end
  return charge[1] and denied and not banned and triggered(charge.part)
end

if denied then reply[2] = 0 end
if ARGV[2] == '1' then
  for i = 1, #KEYS do
    local charge, value = checked[i], nil
    local strategy, cost, arg = charge.strategy, charge.cost, charge.arg
    local taken = wanted(charge)
    if taken and cost > 0 then
      value = strategy.take(now, cost, arg, unpack(charge, 2))
    else
      if strategy.rewound(raws[i], now, arg) then
        value = strategy.take(now, 0, arg, unpack(charge, 2))
      end
      if taken and not denied and strategy.note then
        value = strategy.note(value or raws[i], now, arg) or value
      end
    end
    if value then store(KEYS[i], value, strategy.lifetime(value, now, arg)) end
  end
end
return reply
