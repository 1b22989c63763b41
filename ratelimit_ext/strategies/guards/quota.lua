-- Provider quota: an allowance that the provider keeps and reports. The reasons are in quota.py.
--
-- KEYS     one string
-- stored   full (7 bytes), at (7 bytes), amount (7 bytes), period (7 bytes): when the bucket will be
--          full, when it was touched last, and the allowance as it was reported
-- ARGV     as words: none
-- returns  the snapshot: the wait in microseconds; units left; microseconds until it is full

local SIZE, SKEW, KNOWN, UNKNOWN = 28, 1000000, 3600000000, 1000000000000

local function present(raw, now)
  if not raw or #raw ~= SIZE then return nil end
  local full, at, amount, period = struct.unpack('<I7I7I7I7', raw)
  if at - now > SKEW then full, at = full - (at - now), now end
  return math.max(full, now), math.max(at, now), amount, period
end

local function refill(units, amount, period)
  local whole, rest = multiply_divide(period, math.min(units, amount), amount)
  return rest > 0 and whole + 1 or whole
end

local function packed(full, at, amount, period)
  return struct.pack('<I7I7I7I7', full, at, amount, period)
end

strategies.rp = {
  arguments = 0,
  idle = UNKNOWN,

  receipt = function() return 0 end,

  check = function(raw, now, cost)
    local full, at, amount, period = present(raw, now)
    if not full then return true, 0, UNKNOWN, 0 end
    local missing = full - now
    local wait = math.max(0, missing + refill(cost, amount, period) - period)
    local left = multiply_divide(math.max(0, period - missing), amount, period)
    return wait == 0, wait, left, missing, { full, at, amount, period }
  end,

  take = function(now, cost, arg, wait, left, missing, quota)
    if not quota then return nil end
    local full, at, amount, period = unpack(quota)
    return packed(full + refill(cost, amount, period), at, amount, period)
  end,

  lifetime = function(value, now)
    local full, at = struct.unpack('<I7I7', value)
    return math.max(full, at + KNOWN) - now
  end,

  is_stale = function(raw, now)
    return raw and #raw == SIZE and struct.unpack('<I7', raw, 8) - now > SKEW
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local full, at, amount, period = present(raw, now)
    if not full then return nil end
    local change = refill(math.abs(delta), amount, period)
    if delta < 0 then
      full = math.max(now, full - change)
    else
      full = math.min(now + 2 * period, full + change)
    end
    return packed(full, at, amount, period)
  end,

  report = function(raw, now, arg, amount, used, period)
    local full = now + refill(used, amount, period)
    local own, _, last_amount, last_period = present(raw, now)
    if own then
      if amount ~= last_amount or period ~= last_period then
        local units, rest = multiply_divide(own - now, last_amount, last_period)
        own = now + refill(rest > 0 and units + 1 or units, amount, period)
      end
      full = math.max(full, own)
    end
    return packed(full, now, amount, period)
  end,
}
