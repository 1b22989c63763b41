-- Concurrency: calls in flight. More is in concurrency.py; the calls themselves are the holds of
-- reservations.lua, which returns the slots of expired leases.
--
-- KEYS     one string
-- stored   calls in flight (7 bytes)
-- ARGV     as words: amount; period in microseconds
-- returns  the snapshot: calls in flight, 0, 0

local function in_flight(raw)
  if not raw or #raw < 7 then return 0 end
  return (struct.unpack('<I7', raw))
end

local function take(now, cost, arg, calls)
  return struct.pack('<I7', calls + cost)
end

strategies.cc = {
  arguments = 2,
  most = 0, -- the word of what may be used
  ends_with_calls = true,

  receipt = function(now) return now end,

  check = function(raw, now, cost, arg)
    local calls = in_flight(raw)
    return calls + cost <= words[arg], calls, 0, 0
  end,

  take = take,

  -- The holds keep it for longer.
  lifetime = function(value, now, arg) return in_flight(value) > 0 and words[arg + 1] or 0 end,

  is_stale = function() return false end,

  adjust = function(raw, now, arg, receipt, delta)
    local calls = in_flight(raw)
    return take(now, math.max(delta, -calls), arg, calls)
  end,
}
