-- Sliding window counter. Its weakness is in sliding_window_counter.py.
--
-- KEYS     one string
-- stored   start (7 bytes), previous (7 bytes), current (7 bytes): the instant at which the current
--          window began, the units of the window before it, and its own
-- ARGV     as words: amount; period in microseconds
-- returns  the snapshot: start, previous, current, as of now

local function present(raw, now, period)
  if not raw or #raw ~= 21 then return now, 0, 0 end
  local start, previous, current = struct.unpack('<I7I7I7', raw)
  if now >= start + 2 * period then return now, 0, 0 end
  if now >= start + period then return start + period, current, 0 end
  if start > now then start = now end
  return start, previous, current
end

strategies.sc = {
  arguments = 2,

  receipt = function(now, x) return x end,

  check = function(raw, now, cost, arg)
    local period = words[arg + 1]
    local start, previous, current = present(raw, now, period)
    local weighted = multiply_divide(start + period - now, previous, period) + current
    return weighted + cost <= words[arg], start, previous, current
  end,

  left = function(now, arg, start, previous, current)
    local period = words[arg + 1]
    return words[arg] - current - multiply_divide(start + period - now, previous, period)
  end,

  take = function(now, cost, arg, start, previous, current)
    return struct.pack('<I7I7I7', start, previous, current + cost)
  end,

  lifetime = function(value, now, arg)
    return struct.unpack('<I7', value) + 2 * words[arg + 1] - now
  end,

  is_stale = function(raw, now)
    return raw and #raw == 21 and struct.unpack('<I7', raw) > now
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local period = words[arg + 1]
    local start, previous, current = present(raw, now, period)
    if delta > 0 or receipt == start then
      current = math.min(MOST_USED, math.max(0, current + delta))
    elseif receipt == start - period then
      previous = math.max(0, previous + delta)
    else
      return nil
    end
    return struct.pack('<I7I7I7', start, previous, current)
  end,
}
