-- Reservations: any strategy with the estimates of calls that are not over yet. The reference, with
-- the reasons, is reservations.py.
--
-- KEYS     one string
-- stored   the next instant at which a hold changes (7 bytes), the number of holds (2), the holds in
--          the order of admission: id (6), deadline (7), receipt (7), amount held (6), spent (6),
--          final (6), which lies elsewhere than at the receipt; then what the strategy stores
-- ARGV     as words: the strategy's own; the id of the hold; its lease in microseconds (0: no hold)
-- returns  the strategy's snapshot, after expired leases gave back what they held

local HEAD, RECORD, FORMAT = 9, 38, '<I6I7I7I6I6I6'
local GRACE = 600000000
local NEVER = 72057594037927935
local MOST_HELD = 281474976710655 -- the largest cost that fits its 6 bytes

local function change_of(deadline, amount, spent)
  return amount > spent and deadline or deadline + GRACE
end

-- Holds as one string, the next change among them, and the strategy's part (nil: none).
local function parts(raw)
  if not raw or #raw < HEAD then return '', NEVER, nil end
  local change, count = struct.unpack('<I7I2', raw)
  local ending = HEAD + count * RECORD
  if #raw < ending then return '', NEVER, nil end
  local inner = string.sub(raw, ending + 1)
  return string.sub(raw, HEAD + 1, ending), change, inner ~= '' and inner or nil
end

local function next_change(records)
  local change = NEVER
  for position = 1, #records, RECORD do
    local _, deadline, _, amount, spent = struct.unpack(FORMAT, records, position)
    change = math.min(change, change_of(deadline, amount, spent))
  end
  return change
end

local function joined(records, change, inner)
  return struct.pack('<I7I2', change, #records / RECORD) .. records .. (inner or '')
end

-- Where the hold of this id begins in the string, or nil.
local function place_of(records, id)
  local packed, from = struct.pack('<I6', id), 1
  while true do
    local place = string.find(records, packed, from, true)
    if not place then return nil end
    if (place - 1) % RECORD == 0 then return place end
    from = place + 1
  end
end

-- The strings of the records with the one at this place replaced.
local function replaced(records, place, record)
  return string.sub(records, 1, place - 1) .. record .. string.sub(records, place + RECORD)
end

local function adjusted(strategy, inner, now, arg, receipt, delta)
  if delta == 0 then return inner end
  return strategy.adjust(inner, now, arg, receipt, delta) or inner
end

local function earlier(one, other)
  if one[2] ~= other[2] then return one[2] < other[2] end
  return one.order < other.order
end

-- Give back what expired leases still held, each as of its end; if its window was over by then, it
-- counts as spent. Forget those that expired long ago.
local function expired(strategy, raw, now, arg)
  local records, change, inner = parts(raw)
  if now < change then return records, change, inner end
  local kept, over = {}, {}
  for position = 1, #records, RECORD do
    local record = { struct.unpack(FORMAT, records, position) }
    local deadline, amount, spent = record[2], record[4], record[5]
    if deadline <= now and amount > spent then
      over[#over + 1], record.order = record, position
    end
    if deadline + GRACE > now then kept[#kept + 1] = record end
  end
  table.sort(over, earlier)
  for _, record in ipairs(over) do
    local deadline, receipt, amount, spent = unpack(record, 2, 5)
    local value = strategy.adjust(inner, deadline, arg, receipt, spent - amount)
    if value then
      inner, record[4] = value, spent
      if spent == 0 then record[3] = 0 end -- a full refund is charged nowhere
    else
      record[5] = amount
    end
  end
  for i, record in ipairs(kept) do kept[i] = struct.pack(FORMAT, unpack(record, 1, 6)) end
  records = table.concat(kept)
  return records, next_change(records), inner
end

strategies.reservations = function(strategy)
  local own = strategy.arguments

  local function settled(records, inner)
    return joined(records, next_change(records), inner)
  end

  -- The receipt of what is taken now; the check's own values are behind `cost`.
  local function booked(now, fits, x, y, z) return strategy.receipt(now, x, y, z) end

  local function behind(records, change, fits, x, y, z, ...)
    return fits, x, y, z, records, change, ...
  end

  local function own_change(verb)
    return function(raw, now, word, ...)
      local records, _, inner = expired(strategy, raw, now, word)
      local value = strategy[verb](inner, now, word, ...)
      return value and settled(records, value)
    end
  end

  local reserved = {
    arguments = own + 2,
    ends_with_calls = strategy.ends_with_calls,

    check = function(raw, now, cost, arg)
      local records, change, inner = expired(strategy, raw, now, arg)
      return behind(records, change, strategy.check(inner, now, cost, arg))
    end,

    -- A parameter named `arg` would be lost here: Lua 5.1 has one of its own beside the dots.
    take = function(now, cost, word, x, y, z, records, change, ...)
      local value = strategy.take(now, cost, word, x, y, z, ...)
      local id, lease = words[word + own], words[word + own + 1]
      if cost > 0 and lease > 0 then
        local deadline = now + lease
        local receipt = strategy.receipt(now, x, y, z)
        records = records .. struct.pack(FORMAT, id, deadline, receipt, cost, 0, 0)
        change = math.min(change, deadline)
      end
      return joined(records, change, value)
    end,

    -- A hold for an estimate of 0, which is charged nowhere.
    reserve = function(raw, now, arg)
      local id, lease = words[arg + own], words[arg + own + 1]
      if lease == 0 then return nil end
      local records, change, inner = expired(strategy, raw, now, arg)
      records = records .. struct.pack(FORMAT, id, now + lease, 0, 0, 0, 0)
      return joined(records, math.min(change, now + lease + GRACE), inner)
    end,

    -- The strategy's, and until the last hold is forgotten.
    lifetime = function(value, now, arg)
      local records, _, inner = parts(value)
      local longest = inner and strategy.lifetime(inner, now, arg) or 0
      for position = 1, #records, RECORD do
        local _, deadline = struct.unpack('<I6I7', records, position)
        longest = math.max(longest, deadline + GRACE - now)
      end
      return longest
    end,

    from_future = function(raw, now, arg)
      local _, _, inner = parts(raw)
      return strategy.from_future(inner, now, arg)
    end,

    adjust = own_change('adjust'),

    -- The call is over, and its cost is known; the hold is removed.
    settle = function(raw, now, arg, id, actual)
      local records, _, inner = expired(strategy, raw, now, arg)
      local place = place_of(records, id)
      if not place then return nil end
      local _, _, receipt, amount, _, final = struct.unpack(FORMAT, records, place)
      actual = math.max(math.min(actual, MOST_HELD), final)
      inner = adjusted(strategy, inner, now, arg, receipt, actual - amount)
      return settled(replaced(records, place, ''), inner)
    end,

    -- The call goes on, with its cost so far. What its lease gave back when it expired is taken again,
    -- now.
    renew = function(raw, now, arg, cost, so_far)
      local id, lease = words[arg + own], words[arg + own + 1]
      local records, _, inner = expired(strategy, raw, now, arg)
      local place = place_of(records, id)
      if not place then return nil end
      local _, deadline, receipt, charged, spent, final = struct.unpack(FORMAT, records, place)
      spent = math.min(math.max(spent, so_far), MOST_HELD)
      local amount = math.max(charged, spent, math.min(cost, MOST_HELD))
      if deadline <= now and amount > charged then
        receipt, final = booked(now, strategy.check(inner, now, 0, arg)), charged
      end
      inner = adjusted(strategy, inner, now, arg, receipt, amount - charged)
      local record = struct.pack(FORMAT, id, now + lease, receipt, amount, spent, final)
      return settled(replaced(records, place, record), inner)
    end,
  }

  -- The strategy's other changes apply to its part.
  if strategy.changes then
    for _, verb in ipairs(strategy.changes) do reserved[verb] = own_change(verb) end
  end
  return reserved
end
