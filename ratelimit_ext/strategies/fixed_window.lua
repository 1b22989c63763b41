-- Fixed window, opened by the first call or by the calendar. More is in fixed_window.py.
--
-- KEYS     one string
-- stored   used (7 bytes), end (7 bytes): units taken, and the instant at which the window ends
-- ARGV     as words: amount; period in microseconds; by the client's clock, the end of the calendar's
--          last window, or 0; the next two ends, or 0 and 0
-- returns  the snapshot: units used, the window's end, 0

-- When a window that is opened now ends.
local function ending_of(now, arg)
  local last, period = words[arg + 2], words[arg + 1]
  if last == 0 then return now + period end
  if now < last then return last end
  if now < words[arg + 3] then return words[arg + 3] end
  local ending = words[arg + 4]
  if now < ending then return ending end
  return ending + (math.floor((now - ending) / period) + 1) * period
end

local function take(now, cost, arg, used, ending)
  return struct.pack('<I7I7', used + cost, ending)
end

-- The window that is open now: units used and its end, or 0 and 0.
local function opened(raw, now)
  if not raw or #raw ~= 14 and #raw ~= 25 then return 0, 0 end -- 25: see fair_window.lua
  local used, ending = struct.unpack('<I7I7', raw)
  if ending <= now then return 0, 0 end
  return used, ending
end

strategies.fw = {
  arguments = 5,
  ending_of = ending_of,

  receipt = function(now, x, y) return y end,

  check = function(raw, now, cost, arg)
    local latest, used, ending = ending_of(now, arg), opened(raw, now)
    local is_kept = ending > 0 and ending <= latest and #raw == 14
    if ending == 0 or ending > latest then ending = latest end -- later: a clock set back
    return used + cost <= words[arg], used, ending, 0, is_kept
  end,

  take = take,

  -- A call in a window that is stored changes the units alone.
  patch = function(now, cost, arg, used, ending, is_kept)
    if is_kept then return struct.pack('<I7', used + cost), 0, ending - now end
  end,

  left = function(_, arg, used) return words[arg] - used end,

  lifetime = function(value, now) return struct.unpack('<I7', value, 8) - now end,

  is_stale = function(raw, now, arg)
    local _, ending = opened(raw, now)
    return ending > ending_of(now, arg)
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local used, ending = opened(raw, now)
    if delta <= 0 and (ending == 0 or ending ~= receipt) then return nil end
    if ending == 0 then ending = ending_of(now, arg) end
    return take(now, math.min(MOST_USED - used, math.max(delta, -used)), arg, used, ending)
  end,
}
