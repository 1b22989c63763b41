-- Token bucket. The reference, with the reasons, is token_bucket.py.
--
-- KEYS     one string
-- stored   used (7 bytes), frac (7 bytes), at (7 bytes): what was missing from the bucket at the
--          instant `at`, in units and in 1/period of a unit
-- ARGV     as words: amount; period in microseconds; burst
-- returns  the snapshot: units missing; fraction missing; microseconds until it leaks (clock skew)

local SIZE, SKEW = 21, 1000000

local function leaked(raw, now, amount, period)
  if not raw or #raw ~= SIZE then return 0, 0, 0 end
  local used, frac, at = struct.unpack('<I7I7I7', raw)
  if now <= at then return used, frac, at - now <= SKEW and at - now or 0 end
  local elapsed = now - at
  -- A float suffices to see that all has leaked; what is near the edge is computed exactly, and
  -- the two units of margin are far above the float's error.
  if elapsed / period * amount >= used + 2 then return 0, 0, 0 end
  local whole, part = multiply_divide(elapsed, amount, period)
  used, frac = used - whole, frac - part
  if frac < 0 then used, frac = used - 1, frac + period end
  if used < 0 then return 0, 0, 0 end
  return used, frac, 0
end

local function take(now, cost, arg, used, frac, ahead)
  return struct.pack('<I7I7I7', used + cost, frac, now + ahead)
end

strategies.tb = {
  arguments = 3,

  receipt = function() return 0 end,

  check = function(raw, now, cost, arg)
    local used, frac, ahead = leaked(raw, now, words[arg], words[arg + 1])
    local fits = used + cost + (frac > 0 and 1 or 0) <= words[arg + 2]
    return fits, used, frac, ahead
  end,

  take = take,

  lifetime = function(value, now, arg)
    local used, frac, at = struct.unpack('<I7I7I7', value)
    if used == 0 and frac == 0 then return 0 end
    return math.ceil(at - now + (used + 2) * words[arg + 1] / words[arg])
  end,

  from_future = function(raw, now)
    return raw and #raw == SIZE and struct.unpack('<I7', raw, 15) - now > SKEW
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local used, frac, ahead = leaked(raw, now, words[arg], words[arg + 1])
    local missing = used + delta
    if missing < 0 or (missing == 0 and frac == 0) then -- a full bucket is a fresh one
      return struct.pack('<I7I7I7', 0, 0, now)
    end
    return take(now, math.min(delta, MOST_USED - used), arg, used, frac, ahead)
  end,
}
