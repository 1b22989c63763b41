-- Fixed window, opened by the first call or by the calendar. The reference is fixed_window.py.
--
-- KEYS     one string
-- stored   used (7 bytes), end (7 bytes): units taken, and the instant at which the window ends
-- ARGV     as words: amount; period in microseconds; the next two ends of the calendar's windows, or 0 and 0
-- returns  the reading: units used, the window's end, 0

-- When a window that is opened now ends.
local function ending_of(now, arg)
  local first = words[arg + 2]
  if first == 0 then return now + words[arg + 1] end
  return now < first and first or words[arg + 3]
end

local function take(now, cost, arg, used, ending)
  return struct.pack('<I7I7', used + cost, ending), ending - now
end

-- The window that is open now: units used and its end, or 0 and 0.
local function opened(raw, now)
  if not raw or #raw ~= 14 then return 0, 0 end
  local used, ending = struct.unpack('<I7I7', raw)
  if ending <= now then return 0, 0 end
  return used, ending
end

strategies.fw = {
  arguments = 4,

  receipt = function(now, x, y) return y end,

  check = function(raw, now, cost, arg)
    local used, ending = opened(raw, now)
    local latest = ending_of(now, arg)
    if ending == 0 or ending > latest then ending = latest end -- later: a clock set back
    return used + cost <= words[arg], used, ending, 0
  end,

  take = take,

  rewound = function(raw, now, arg)
    local _, ending = opened(raw, now)
    return ending > ending_of(now, arg)
  end,

  adjust = function(raw, now, receipt, delta, arg)
    local used, ending = opened(raw, now)
    if receipt <= now or (delta <= 0 and ending ~= receipt) then return nil end
    if ending == 0 then ending = receipt end
    return take(now, math.min(MOST_USED - used, math.max(delta, -used)), arg, used, ending)
  end,
}
