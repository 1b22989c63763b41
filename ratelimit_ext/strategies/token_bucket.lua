-- Token bucket. The reference, with the reasons, is token_bucket.py.
--
-- KEYS     one string
-- stored   used (7 bytes), frac (6 bytes), at (7 bytes), pace (5 bytes): what was missing from the
--          bucket at the instant `at`, in units and in 1/period of a unit, and the amount per period at
--          which it leaks away. Until November 2026: used, frac and at, 7 bytes each
-- ARGV     as words: amount; period in microseconds; burst
-- returns  the snapshot: units missing; fraction missing; microseconds until it leaks (clock skew)

local FORMAT, SIZE, SIZE_WITHOUT_PACE, SKEW = '<I7I6I7I5', 25, 21, 1000000

-- Nothing if there is no bucket.
local function stored(raw, arg)
  if not raw then return nil end
  if #raw == SIZE then return struct.unpack(FORMAT, raw) end
  if #raw ~= SIZE_WITHOUT_PACE then return nil end
  local used, frac, at = struct.unpack('<I7I7I7', raw)
  return used, frac, at, words[arg]
end

-- What is missing now, by how much the bucket is ahead of now, and its pace.
local function leaked(raw, now, arg)
  local used, frac, at, pace = stored(raw, arg)
  if not used then return 0, 0, 0, words[arg] end
  if now <= at then return used, frac, at - now <= SKEW and at - now or 0, pace end
  local elapsed, period = now - at, words[arg + 1]
  -- A float suffices to see that all has leaked; what is near the edge is computed exactly, and
  -- the two units of margin are far above the float's error.
  if elapsed / period * pace >= used + 2 then return 0, 0, 0, words[arg] end
  local whole, part = multiply_divide(elapsed, pace, period)
  used, frac = used - whole, frac - part
  if frac < 0 then used, frac = used - 1, frac + period end
  if used < 0 or (used == 0 and frac == 0) then return 0, 0, 0, words[arg] end
  return used, frac, 0, pace
end

local function take(now, cost, arg, used, frac, ahead)
  return struct.pack(FORMAT, used + cost, frac, now + ahead, words[arg])
end

strategies.tb = {
  arguments = 3,

  receipt = function() return 0 end,

  check = function(raw, now, cost, arg)
    local used, frac, ahead = leaked(raw, now, arg)
    local fits = used + cost + (frac > 0 and 1 or 0) <= words[arg + 2]
    return fits, used, frac, ahead
  end,

  take = take,

  lifetime = function(value, now, arg)
    local used, frac, at, pace = stored(value, arg)
    if used == 0 and frac == 0 then return 0 end
    return math.ceil(at - now + (used + 2) * words[arg + 1] / pace)
  end,

  is_stale = function(raw, now, arg)
    local _, _, at, pace = stored(raw, arg)
    return at and (at - now > SKEW or pace ~= words[arg])
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local used, frac, ahead, pace = leaked(raw, now, arg)
    local missing = math.min(used + delta, MOST_USED)
    if missing < 0 or (missing == 0 and frac == 0) then -- a full bucket is a fresh one
      return struct.pack(FORMAT, 0, 0, now, pace)
    end
    return struct.pack(FORMAT, missing, frac, now + ahead, pace)
  end,
}
