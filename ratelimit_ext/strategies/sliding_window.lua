-- Sliding window: a log of calls, merged so that it never exceeds 512 entries. The reference, with
-- the reasons, is sliding_window.py.
--
-- KEYS     one string
-- stored   the sum of all costs (7 bytes); then entries, oldest first: instant (7), cost (5)
-- ARGV     amount; period in microseconds
-- returns  the reading: units in the window; its oldest instant, or 0; the instant that has to leave
--          before the cost fits, or 0

local HEAD, ENTRY, EXACT, MOST, MOST_TOTAL = 7, 12, 256, 512, 1099511627775

local function entry_at(raw, position) return struct.unpack('<I7I5', raw, position) end

-- The log without its expired head: the sum, the whole string, where the live part begins, and the
-- oldest live instant (0: none).
local function present(raw, now, period)
  if not raw or (#raw - HEAD) % ENTRY ~= 0 or #raw < HEAD + ENTRY then return 0, '', 1, 0 end
  local total = struct.unpack('<I7', raw)
  local size, position, cutoff = #raw, HEAD + 1, now - period
  local instant, cost, following
  while position < size do
    instant, cost, following = entry_at(raw, position)
    if instant > cutoff then break end
    total, position = total - cost, following
  end
  if position > size then return 0, '', 1, 0 end
  if entry_at(raw, size - ENTRY + 1) > now then -- the clock was set back: the future becomes now
    local ahead, ending = 0, size
    while ending > position do
      local later, spent = entry_at(raw, ending - ENTRY + 1)
      if later <= now then break end
      ahead, ending = ahead + spent, ending - ENTRY
    end
    raw = string.sub(raw, 1, ending) .. struct.pack('<I7I5', now, ahead)
    if instant > now then instant = now end
  end
  return total, raw, position, instant
end

local function grain_of(instant, grain) return math.floor(instant / grain) end

local function merged(entries, grain)
  local kept = {}
  local instant, cost, position = entry_at(entries, 1)
  while position <= #entries do
    local later, spent
    later, spent, position = entry_at(entries, position)
    if grain_of(later, grain) == grain_of(instant, grain) then
      cost = cost + spent
    else
      kept[#kept + 1] = struct.pack('<I7I5', instant, cost)
      cost = spent
    end
    instant = later
  end
  kept[#kept + 1] = struct.pack('<I7I5', instant, cost)
  return table.concat(kept)
end

strategies.sw = {
  arguments = 2,

  check = function(raw, now, cost, arg)
    local amount = tonumber(ARGV[arg])
    local total, log, position, oldest = present(raw, now, tonumber(ARGV[arg + 1]))
    local excess, leaver = total + cost - amount, 0
    if excess > 0 and cost <= amount then
      local cursor = position
      while excess > 0 and cursor < #log do
        local leaving
        leaver, leaving, cursor = entry_at(log, cursor)
        excess = excess - leaving
      end
    end
    return total + cost <= amount, total, oldest, leaver, log, position
  end,

  take = function(now, cost, arg, total, oldest, leaver, log, position)
    local period = tonumber(ARGV[arg + 1])
    local grain = math.ceil(period / (MOST - 1))
    local entries, count, spent = string.sub(log, position), (#log - position + 1) / ENTRY, cost
    if count > 0 then
      local newest, newest_cost = entry_at(entries, #entries - ENTRY + 1)
      if newest == now or (count >= EXACT and grain_of(newest, grain) == grain_of(now, grain)) then
        entries, spent = string.sub(entries, 1, -ENTRY - 1), newest_cost + cost
      elseif count >= MOST then
        entries = merged(entries, grain)
      end
    end
    return struct.pack('<I7', total + cost) .. entries .. struct.pack('<I7I5', now, spent), period
  end,

  adjust = function(raw, now, receipt, delta, arg)
    local period = tonumber(ARGV[arg + 1])
    local total, log, position = present(raw, now, period)
    if log == '' or receipt <= now - period then return nil end
    local low, high = 0, (#log - position + 1) / ENTRY - 1 -- the first instant >= receipt
    while low < high do
      local middle = math.floor((low + high) / 2)
      if entry_at(log, position + middle * ENTRY) >= receipt then
        high = middle
      else
        low = middle + 1
      end
    end
    local place = position + low * ENTRY
    local instant, cost = entry_at(log, place)
    local real = math.min(math.max(0, cost + delta), MOST_TOTAL - total + cost)
    local entries = string.sub(log, position, place - 1)
      .. (real > 0 and struct.pack('<I7I5', instant, real) or '')
      .. string.sub(log, place + ENTRY)
    if entries == '' then return '', 0 end
    local newest = entry_at(entries, #entries - ENTRY + 1)
    return struct.pack('<I7', total + real - cost) .. entries, newest + period - now
  end,
}
