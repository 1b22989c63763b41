-- Holding: any strategy with the estimates of calls that are not over yet. The reference, with the
-- reasons, is holding.py.
--
-- KEYS     one string
-- stored   the next instant at which a hold changes (7 bytes), how many holds there are (2), the holds
--          in the order of admission: id (6), deadline (7), receipt (7), amount held (6), spent (6);
--          then what the strategy stores
-- ARGV     as words: the strategy's own; the id of the hold; its lease in microseconds (0: no hold)
-- returns  the strategy's reading, after what is over was given back

local HEAD, RECORD, FORMAT = 9, 32, '<I6I7I7I6I6'
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

local function joined(records, change, inner)
  return struct.pack('<I7I2', change, #records / RECORD) .. records .. (inner or '')
end

-- How long the holds matter: until the last of them is forgotten.
local function ttl_of(records, now)
  local latest = 0
  for position = 1, #records, RECORD do
    local _, deadline = struct.unpack('<I6I7', records, position)
    if deadline + GRACE > latest then latest = deadline + GRACE end
  end
  return latest - now
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

local function next_change(records)
  local change = NEVER
  for position = 1, #records, RECORD do
    local _, deadline, _, amount, spent = struct.unpack(FORMAT, records, position)
    change = math.min(change, change_of(deadline, amount, spent))
  end
  return change
end

local function adjusted(strategy, inner, now, receipt, delta, arg)
  if delta == 0 then return inner end
  local value = strategy.adjust(inner, now, receipt, delta, arg)
  if value == '' then return nil end
  return value or inner
end

-- Give back what the leases that are over still held; forget those that were over long ago.
local function expired(strategy, raw, now, arg)
  local records, change, inner = parts(raw)
  if now < change then return records, change, inner end
  local kept = {}
  for position = 1, #records, RECORD do
    local id, deadline, receipt, amount, spent = struct.unpack(FORMAT, records, position)
    if deadline <= now and amount > spent then
      inner = adjusted(strategy, inner, now, receipt, spent - amount, arg)
      amount = spent
    end
    if deadline + GRACE > now then
      kept[#kept + 1] = struct.pack(FORMAT, id, deadline, receipt, amount, spent)
    end
  end
  records = table.concat(kept)
  return records, next_change(records), inner
end

strategies.holding = function(strategy)
  local own = strategy.arguments
  local periods = strategy.kept or 2

  local function kept(records, inner, now, arg)
    local ttl = math.max(ttl_of(records, now), inner and periods * words[arg + 1] or 0)
    return joined(records, next_change(records), inner), ttl
  end

  local function behind(records, change, fits, x, y, z, ...)
    return fits, x, y, z, records, change, ...
  end

  return {
    arguments = own + 2,

    check = function(raw, now, cost, arg)
      local records, change, inner = expired(strategy, raw, now, arg)
      return behind(records, change, strategy.check(inner, now, cost, arg))
    end,

    -- A parameter named `arg` would be lost here: Lua 5.1 has one of its own beside the dots.
    take = function(now, cost, word, x, y, z, records, change, ...)
      local value, ttl = strategy.take(now, cost, word, x, y, z, ...)
      local id, lease = words[word + own], words[word + own + 1]
      if cost > 0 and lease > 0 then
        local deadline = now + lease
        local receipt = strategy.receipt(now, x, y, z)
        records = records .. struct.pack(FORMAT, id, deadline, receipt, cost, 0)
        change = math.min(change, deadline)
      end
      return joined(records, change, value), math.max(ttl, ttl_of(records, now))
    end,

    rewound = function(raw, now, arg)
      local _, _, inner = parts(raw)
      return strategy.rewound(inner, now, arg)
    end,

    adjust = function(raw, now, receipt, delta, arg)
      local records, _, inner = expired(strategy, raw, now, arg)
      local value = strategy.adjust(inner, now, receipt, delta, arg)
      if not value then return nil end
      return kept(records, value ~= '' and value or nil, now, arg)
    end,

    -- The call of this hold is over, and cost so much; the hold goes.
    settle = function(raw, now, id, actual, arg)
      local records, _, inner = expired(strategy, raw, now, arg)
      local place = place_of(records, id)
      if not place then return nil end
      local _, _, receipt, amount = struct.unpack(FORMAT, records, place)
      actual = math.min(actual, MOST_HELD)
      inner = adjusted(strategy, inner, now, receipt, actual - amount, arg)
      records = string.sub(records, 1, place - 1) .. string.sub(records, place + RECORD)
      return kept(records, inner, now, arg)
    end,

    -- The call of this hold goes on, and has cost so much so far.
    renew = function(raw, now, id, so_far, arg)
      local records, _, inner = expired(strategy, raw, now, arg)
      local place = place_of(records, id)
      if not place then return nil end
      local _, _, receipt, amount, spent = struct.unpack(FORMAT, records, place)
      spent = math.min(math.max(spent, so_far), MOST_HELD)
      if spent > amount then
        inner = adjusted(strategy, inner, now, receipt, spent - amount, arg)
        amount = spent
      end
      local record = struct.pack(FORMAT, id, now + words[arg + own + 1], receipt, amount, spent)
      records = string.sub(records, 1, place - 1) .. record
        .. string.sub(records, place + RECORD)
      return kept(records, inner, now, arg)
    end,
  }
end
