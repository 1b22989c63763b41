-- Sliding window: a log of calls, merged so that it never exceeds 512 entries. The reasons are in
-- sliding_window.py.
--
-- KEYS     one string
-- stored   entries, oldest first: instant (7 bytes), sum (1 bytes) for amounts below 256, else up to 5;
--          then the base, as wide as a sum, unless it is 0; then (1 bytes) the width of a sum, plus 8
--          if there is a base. A sum is that of all costs up to its entry, and the base that of all
--          before the first, both modulo 256 ^ width: what lies in the window is a difference, and
--          smaller. An entry is found by halves, both by its instant and by its sum, and to merge
--          entries is to drop all but the last.
-- ARGV     as words: amount; period in microseconds
-- returns  the snapshot: units in the window; its newest instant, or 0; the instant that has to leave
--          before the cost fits, or 0; if it fits, the oldest, or 0

local INSTANT, EXACT, MOST, MOST_TOTAL = 7, 256, 512, 1099511627775
local FORMATS = { '<I7I1', '<I7I2', '<I7I3', '<I7I4', '<I7I5' } -- of an entry, by width

-- Entries are counted from 0.
local function place_of(index, width) return 1 + index * (INSTANT + width) end

local function entry_at(log, index, width)
  return struct.unpack(FORMATS[width], log, place_of(index, width))
end

local function packed(instant, sum, width)
  return struct.pack(FORMATS[width], instant, sum % 256 ^ width)
end

-- The end of what is stored: base and width.
local function ending_of(base, width)
  if base == 0 then return string.char(width) end
  return struct.pack('<I' .. width .. 'I1', base, width + 8)
end

-- The width of sums that lie apart by no more than this.
local function width_for(most)
  if most < 256 then return 1 elseif most < 65536 then return 2 elseif most < 16777216 then return 3 end
  return most < 4294967296 and 4 or 5
end

-- The number of entries, their width, the base; no entries if the value is malformed.
local function stored(raw)
  local last = raw and string.byte(raw, -1) or 0
  local width = last % 8
  if width < 1 or width > 5 or last > 13 then return 0, 1, 0 end
  local size = #raw - 1 - (last > 8 and width or 0)
  local count = size / (INSTANT + width)
  if count % 1 ~= 0 then return 0, 1, 0 end
  return count, width, last > 8 and struct.unpack('<I' .. width, raw, size + 1) or 0
end

-- The first entry from `low` up for which reached(instant, sum) holds; `high` if no entry does.
local function first_entry(log, low, high, width, reached)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if reached(entry_at(log, middle, width)) then high = middle else low = middle + 1 end
  end
  return low
end

-- The log at the present: the units in it, its base, the string, its first live entry, the number of
-- entries up to its end, the width. With nothing alive, the first and the number are equal.
local function present(raw, now, period)
  local count, width, base = stored(raw)
  local first = 0
  if count > 0 and entry_at(raw, 0, width) <= now - period then
    first = first_entry(raw, 1, count, width, function(instant) return instant > now - period end)
    base = select(2, entry_at(raw, first - 1, width))
  end
  if first == count then return 0, 0, '', 0, 0, 1 end
  local newest, sum = entry_at(raw, count - 1, width)
  if newest > now then -- the clock was set back: the future becomes now
    count = 1 + first_entry(raw, first, count, width, function(instant) return instant > now end)
    raw = string.sub(raw, 1, place_of(count - 1, width) - 1) .. packed(now, sum, width)
  end
  return (sum - base) % 256 ^ width, base, raw, first, count, width
end

-- Of the entries in one grain of the period only the last.
local function merged(entries, width, grain)
  local kept, before, size = {}, nil, INSTANT + width
  for position = 1, #entries, size do
    local own = math.floor(struct.unpack('<I7', entries, position) / grain)
    kept[own == before and #kept or #kept + 1] = string.sub(entries, position, position + size - 1)
    before = own
  end
  return table.concat(kept)
end

-- The live entries with sums of another width, counted from a base of 0.
local function widened(log, first, count, base, width, wider)
  local entries = {}
  for index = first, count - 1 do
    local instant, sum = entry_at(log, index, width)
    entries[#entries + 1] = packed(instant, (sum - base) % 256 ^ width, wider)
  end
  return table.concat(entries)
end

-- Whether a call of now replaces the newest of these entries.
local function joins_newest(log, first, count, width, now, arg)
  if count == first then return false end
  local newest = entry_at(log, count - 1, width)
  if newest == now then return true end
  local grain = math.ceil(words[arg + 1] / (MOST - 1))
  return count - first >= EXACT and math.floor(newest / grain) == math.floor(now / grain)
end

local function take(now, cost, arg, total, newest, leaver, state)
  local base, log, first, count, width = unpack(state)
  local wider = width_for(math.max(words[arg], total + cost))
  if wider > width then
    log, base = widened(log, first, count, base, width, wider), 0
    first, count, width = 0, count - first, wider
  end
  local kept, full = count, count - first >= MOST
  if joins_newest(log, first, count, width, now, arg) then kept, full = count - 1, false end
  local entries = string.sub(log, place_of(first, width), place_of(kept, width) - 1)
  if full then entries = merged(entries, width, math.ceil(words[arg + 1] / (MOST - 1))) end
  return entries .. packed(now, base + total + cost, width) .. ending_of(base, width)
end

strategies.sw = {
  arguments = 2,

  receipt = function(now) return now end,

  check = function(raw, now, cost, arg)
    local amount = words[arg]
    local total, base, log, first, count, width = present(raw, now, words[arg + 1])
    local newest, leaver = first < count and entry_at(log, count - 1, width) or 0, 0
    local excess = total + cost - amount
    if excess <= 0 then
      if newest > 0 then leaver = entry_at(log, first, width) end
    elseif cost <= amount then
      if cost == 0 then excess = math.min(excess + 1, total) end -- a look: until one unit fits
      leaver = entry_at(log, first_entry(log, first, count, width, function(_, sum)
        return (sum - base) % 256 ^ width >= excess
      end), width)
    end
    return excess <= 0, total, newest, leaver, { base, log, first, count, width, log == raw }
  end,

  take = take,

  left = function(_, arg, total) return words[arg] - total end,

  -- A call that changes nothing but the newest entry: that entry, its offset, and the lifetime.
  patch = function(now, cost, arg, total, newest, state)
    local base, log, first, count, width, is_stored = unpack(state)
    if not is_stored or first > 0 or width_for(total + cost) > width then return nil end
    if not joins_newest(log, first, count, width, now, arg) then return nil end
    return packed(now, base + total + cost, width), place_of(count - 1, width) - 1, words[arg + 1]
  end,

  -- A log of many entries is kept for all that join the newest one.
  lifetime = function(value, now, arg)
    local count, width = stored(value)
    if count == 0 then return 0 end
    local grain = count < EXACT and 1 or math.ceil(words[arg + 1] / (MOST - 1))
    return (math.floor(entry_at(value, count - 1, width) / grain) + 1) * grain - 1 + words[arg + 1] - now
  end,

  is_stale = function(raw, now)
    local count, width = stored(raw)
    return count > 0 and entry_at(raw, count - 1, width) > now
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local period = words[arg + 1]
    local total, base, log, first, count, width = present(raw, now, period)
    delta = math.min(delta, MOST_TOTAL - total)
    local index = count
    if receipt > now - period then
      receipt = math.min(receipt, now) -- a clock set back moved the entry to the present
      index = first_entry(log, first, count, width, function(instant) return instant >= receipt end)
    end
    if index == count then
      if delta <= 0 then return nil end
      return take(now, delta, arg, total, 0, 0, { base, log, first, count, width })
    end
    local wider = width_for(total + delta)
    if wider > width then
      log, base = widened(log, first, count, base, width, wider), 0
      first, count, index, width = 0, count - first, index - first, wider
    end
    local before = index > first and select(2, entry_at(log, index - 1, width)) or base
    local cost = (select(2, entry_at(log, index, width)) - before) % 256 ^ width
    delta = math.max(delta, -cost)
    local parts = { string.sub(log, place_of(first, width), place_of(index, width) - 1) }
    for later = cost + delta == 0 and index + 1 or index, count - 1 do
      local instant, sum = entry_at(log, later, width)
      parts[#parts + 1] = packed(instant, sum + delta, width)
    end
    if #parts == 1 and parts[1] == '' then return '' end
    return table.concat(parts) .. ending_of(base, width)
  end,
}
