-- Token bucket. The reasons are in token_bucket.py.
--
-- KEYS     one string
-- stored   used (7 bytes), frac (6 bytes), at (7 bytes), pace (5 bytes): what was missing from the
--          bucket at the instant `at`, in units and in 1/period of a unit, and the amount per period at
--          which it leaks away
-- ARGV     as words: amount; period in microseconds; burst
-- returns  the snapshot: units missing; fraction missing; microseconds until it leaks (clock skew)

local FORMAT, SIZE, SKEW = '<I7I6I7I5', 25, 1000000

-- Nothing if there is no bucket.
local function stored(raw)
  if raw and #raw == SIZE then return struct.unpack(FORMAT, raw) end
end

-- What is missing now, by how much the bucket is ahead of now, and its pace.
local function leaked(raw, now, arg)
  local used, frac, at, pace = stored(raw)
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

strategies.tb = {
  arguments = 3,
  most = 2, -- the word of what may be used

  -- When `missing` units more than the burst have leaked away.
  due = function(now, arg, missing, frac, ahead)
    return now + ahead + math.ceil((missing * words[arg + 1] + frac) / words[arg])
  end,

  receipt = function() return 0 end,

  check = function(raw, now, cost, arg)
    local used, frac, ahead = leaked(raw, now, arg)
    local fits = frac <= (words[arg + 2] - used - cost) * words[arg + 1]
    return fits, used, frac, ahead
  end,

  take = function(now, cost, arg, used, frac, ahead)
    return struct.pack(FORMAT, used + cost, frac, now + ahead, words[arg])
  end,

  left = function(_, arg, used, frac) return words[arg + 2] - used - (frac > 0 and 1 or 0) end,

  lifetime = function(value, now, arg)
    local used, frac, at, pace = stored(value)
    if used == 0 and frac == 0 then return 0 end
    return math.ceil(at - now + (used + 2) * words[arg + 1] / pace)
  end,

  is_stale = function(raw, now, arg)
    local _, _, at, pace = stored(raw)
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
