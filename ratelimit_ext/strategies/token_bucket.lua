-- Token bucket. The reasons are in token_bucket.py.
--
-- KEYS     one string
-- stored   used (7 bytes), frac (6 bytes), at (7 bytes), pace (5 bytes): what was missing from the
--          bucket at the instant `at`, in units and in 1/period of a unit, and the amount per period at
--          which it leaks away. Until November 2026: used, frac and at, 7 bytes each. A bucket stays
--          in that form while it is in use, as workers of 81a8acf read no other
-- ARGV     as words: amount; period in microseconds; burst
-- returns  the snapshot: units missing; fraction missing; microseconds until it leaks (clock skew)

local FORMAT, SIZE, SKEW = '<I7I6I7I5', 25, 1000000
local FORMER_FORMAT, FORMER_SIZE = '<I7I7I7', 21
local IDLE = 600000000 -- a bucket without a pace that was unused for this long gets one

-- Nothing if there is no bucket. A former one has leaked at the present pace.
local function stored(raw, arg)
  if not raw then return nil end
  if #raw == SIZE then return struct.unpack(FORMAT, raw) end
  if #raw ~= FORMER_SIZE then return nil end
  local used, frac, at = struct.unpack(FORMER_FORMAT, raw)
  return used, frac, at, words[arg]
end

-- What is missing now, by how much the bucket is ahead of now, its pace, and whether it keeps the
-- former format.
local function leaked(raw, now, arg)
  local used, frac, at, pace = stored(raw, arg)
  if not used then return 0, 0, 0, words[arg], false end
  local former = #raw == FORMER_SIZE and now - at < IDLE
  if now <= at then return used, frac, at - now <= SKEW and at - now or 0, pace, former end
  local elapsed, period = now - at, words[arg + 1]
  -- A float suffices to see that all has leaked; what is near the edge is computed exactly, and
  -- the two units of margin are far above the float's error.
  if elapsed / period * pace >= used + 2 then return 0, 0, 0, words[arg], false end
  local whole, part = multiply_divide(elapsed, pace, period)
  used, frac = used - whole, frac - part
  if frac < 0 then used, frac = used - 1, frac + period end
  if used < 0 or (used == 0 and frac == 0) then return 0, 0, 0, words[arg], false end
  return used, frac, 0, pace, former
end

local function packed(used, frac, at, pace, former)
  if former then return struct.pack(FORMER_FORMAT, used, frac, at) end
  return struct.pack(FORMAT, used, frac, at, pace)
end

local function take(now, cost, arg, used, frac, ahead, former)
  return packed(used + cost, frac, now + ahead, words[arg], former)
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
    local used, frac, ahead, _, former = leaked(raw, now, arg)
    local fits = frac <= (words[arg + 2] - used - cost) * words[arg + 1]
    return fits, used, frac, ahead, former
  end,

  take = take,

  left = function(_, arg, used, frac) return words[arg + 2] - used - (frac > 0 and 1 or 0) end,

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
    local used, frac, ahead, pace, former = leaked(raw, now, arg)
    local missing = math.min(used + delta, MOST_USED)
    if missing < 0 or (missing == 0 and frac == 0) then -- a full bucket is a fresh one
      return packed(0, 0, now, pace)
    end
    return packed(missing, frac, now + ahead, pace, former)
  end,
}
