-- Sliding window: a log of calls, merged so that it never exceeds 512 entries. The reference, with
-- the reasons, is sliding_window.py.
--
-- KEYS     one string
-- stored   entries, oldest first: instant (7 bytes), sum (5 bytes); then the base in 5 bytes, unless it
--          is 0. A sum is that of all costs up to its entry, and the base that of all before the
--          first, both modulo 2^40: what lies in the window is a difference, and no larger. An entry
--          is found by halves, both by its instant and by its sum, and to merge entries is to drop all
--          but the last.
-- ARGV     as words: amount; period in microseconds
-- returns  the snapshot: units in the window; its oldest instant, or 0; the instant that has to leave
--          before the cost fits, or 0

local BASE, ENTRY, EXACT, MOST, MODULUS = 5, 12, 256, 512, 1099511627776
local LARGE = 1024 -- bytes of a log from which it is changed in place

-- Entries are counted from 0.
local function place_of(index) return 1 + index * ENTRY end

local function entry_at(log, index) return struct.unpack('<I7I5', log, place_of(index)) end

local function packed(instant, sum) return struct.pack('<I7I5', instant, sum % MODULUS) end

local function packed_base(base) return base == 0 and '' or struct.pack('<I5', base) end

-- How many entries are stored; 0 if the value is malformed.
local function count_of(raw)
  if not raw then return 0 end
  local rest = #raw % ENTRY
  return (rest == 0 or rest == BASE) and (#raw - rest) / ENTRY or 0
end

-- The first entry from `low` up for which reached(instant, sum) holds; `high` if no entry does.
local function first_entry(log, low, high, reached)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if reached(entry_at(log, middle)) then high = middle else low = middle + 1 end
  end
  return low
end

-- The log at the present: the units in it, its base, the string, its first live entry, and the number
-- of entries up to its end. With nothing alive, the last two are equal.
local function present(raw, now, period)
  local count, first, base = count_of(raw), 0, 0
  if count == 0 then return 0, 0, '', 0, 0 end
  if #raw > count * ENTRY then base = struct.unpack('<I5', raw, place_of(count)) end
  if entry_at(raw, 0) <= now - period then
    first = first_entry(raw, 1, count, function(instant) return instant > now - period end)
    base = select(2, entry_at(raw, first - 1))
  end
  if first == count then return 0, 0, '', 0, 0 end
  local newest, sum = entry_at(raw, count - 1)
  if newest > now then -- the clock was set back: the future becomes now
    count = 1 + first_entry(raw, first, count, function(instant) return instant > now end)
    raw = string.sub(raw, 1, place_of(count - 1) - 1) .. packed(now, sum)
  end
  return (sum - base) % MODULUS, base, raw, first, count
end

-- Of the entries in one grain of the period only the last.
local function merged(entries, grain)
  local kept, before = {}, nil
  for position = 1, #entries, ENTRY do
    local own = math.floor(struct.unpack('<I7', entries, position) / grain)
    kept[own == before and #kept or #kept + 1] = string.sub(entries, position, position + ENTRY - 1)
    before = own
  end
  return table.concat(kept)
end

-- Whether a call of now replaces the newest of these entries.
local function joins_newest(log, first, count, now, grain)
  if count == first then return false end
  local newest = entry_at(log, count - 1)
  if newest == now then return true end
  return count - first >= EXACT and math.floor(newest / grain) == math.floor(now / grain)
end

local function take(now, cost, arg, total, oldest, leaver, base, log, first, count)
  local period = words[arg + 1]
  local grain = math.ceil(period / (MOST - 1))
  local kept, full = count, count - first >= MOST
  if joins_newest(log, first, count, now, grain) then kept, full = count - 1, false end
  local entries = string.sub(log, place_of(first), place_of(kept) - 1)
  if full then entries = merged(entries, grain) end
  return entries .. packed(now, base + total + cost) .. packed_base(base)
end

strategies.sw = {
  arguments = 2,

  receipt = function(now) return now end,

  check = function(raw, now, cost, arg)
    local amount = words[arg]
    local total, base, log, first, count = present(raw, now, words[arg + 1])
    local oldest, leaver = first < count and entry_at(log, first) or 0, 0
    local excess = total + cost - amount
    if excess > 0 and cost <= amount then
      leaver = entry_at(log, first_entry(log, first, count, function(_, sum)
        return (sum - base) % MODULUS >= excess
      end))
    end
    return excess <= 0, total, oldest, leaver, base, log, first, count
  end,

  take = take,

  -- A call that changes nothing but the newest entry of a large log: that entry and its offset.
  patch = function(raw, now, cost, arg, total, oldest, leaver, base, log, first, count)
    local grain = math.ceil(words[arg + 1] / (MOST - 1))
    if not raw or #raw < LARGE or #log ~= #raw or first > 0 then return nil end
    if not joins_newest(log, first, count, now, grain) then return nil end
    return packed(now, base + total + cost), place_of(count - 1) - 1
  end,

  lifetime = function(value, now, arg)
    local count = count_of(value)
    return count > 0 and entry_at(value, count - 1) + words[arg + 1] - now or 0
  end,

  from_future = function(raw, now)
    local count = count_of(raw)
    return count > 0 and entry_at(raw, count - 1) > now
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local period = words[arg + 1]
    local total, base, log, first, count = present(raw, now, period)
    delta = math.min(delta, MODULUS - 1 - total)
    local index = count
    if receipt > now - period then
      receipt = math.min(receipt, now) -- a clock set back moved the entry to the present
      index = first_entry(log, first, count, function(instant) return instant >= receipt end)
    end
    if index == count then
      if delta <= 0 then return nil end
      return take(now, delta, arg, total, 0, 0, base, log, first, count)
    end
    local before = index > first and select(2, entry_at(log, index - 1)) or base
    local cost = (select(2, entry_at(log, index)) - before) % MODULUS
    delta = math.max(delta, -cost)
    local parts = { string.sub(log, place_of(first), place_of(index) - 1) }
    for later = cost + delta == 0 and index + 1 or index, count - 1 do
      local instant, sum = entry_at(log, later)
      parts[#parts + 1] = packed(instant, sum + delta)
    end
    if #parts == 1 and parts[1] == '' then return '' end
    return table.concat(parts) .. packed_base(base)
  end,
}
