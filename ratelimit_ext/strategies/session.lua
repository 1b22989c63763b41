-- Session: an amount until nothing was charged for a while. More is in session.py.
--
-- KEYS     one string
-- stored   used (7 bytes), end (7 bytes), begin (7 bytes): units taken, the instant at which the
--          session ends if nothing is charged, and at which it began
-- ARGV     as words: amount; for how long it may be idle, in microseconds
-- returns  the snapshot: units used, the session's end, its begin

-- The session of now: units used, its end and begin, or 0, 0 and 0.
local function opened(raw, now)
  if not raw or #raw ~= 21 then return 0, 0, 0 end
  local used, ending, begin = struct.unpack('<I7I7I7', raw)
  if ending <= now then return 0, 0, 0 end
  return used, ending, begin
end

strategies.se = {
  arguments = 2,

  receipt = function(now, x, y, z) return z end,

  check = function(raw, now, cost, arg)
    local used, ending, begin = opened(raw, now)
    local latest = now + words[arg + 1]
    if ending == 0 then ending, begin = latest, now end
    return used + cost <= words[arg], used, math.min(ending, latest), begin -- later: a clock set back
  end,

  left = function(_, arg, used) return words[arg] - used end,

  marked = function() return 86400000000 end, -- a session goes on as long as calls come

  take = function(now, cost, arg, used, ending, begin)
    return struct.pack('<I7I7I7', used + cost, now + words[arg + 1], begin)
  end,

  lifetime = function(value, now) return struct.unpack('<I7', value, 8) - now end,

  is_stale = function(raw, now, arg)
    local _, ending = opened(raw, now)
    return ending > now + words[arg + 1]
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local used, ending, begin = opened(raw, now)
    if delta <= 0 and (ending == 0 or begin ~= receipt) then return nil end
    if ending == 0 then ending, begin = now + words[arg + 1], now end
    return struct.pack('<I7I7I7', math.min(MOST_USED, math.max(0, used + delta)), ending, begin)
  end,
}
