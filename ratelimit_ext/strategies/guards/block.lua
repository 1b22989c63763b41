-- Block: nothing passes until it ends. The reasons are in block.py.
--
-- KEYS     one string
-- stored   since (7 bytes), end (7 bytes), reason (1 byte): the block
-- ARGV     as words: none
-- returns  the snapshot: the wait in microseconds; the reason; 0

local FORMAT, SIZE, SKEW = '<I7I7I1', 15, 1000000

local function present(raw, now)
  if not raw or #raw < SIZE then return nil end
  local since, ending, reason = struct.unpack(FORMAT, raw)
  local back = since - now
  if back > SKEW then since, ending = since - back, ending - back end
  return since, ending, reason
end

strategies.bl = {
  arguments = 0,
  idle = 0,

  receipt = function() return 0 end,

  check = function(raw, now, cost)
    local since, ending, reason = present(raw, now)
    if not since then return true, 0, 0, 0 end
    local wait = math.max(0, ending - now)
    return wait == 0, wait, reason, 0, { since, ending, reason }
  end,

  take = function(now, cost, arg, wait, reason, zero, block)
    return block and struct.pack(FORMAT, unpack(block)) or nil
  end,

  lifetime = function(value, now)
    local _, ending = struct.unpack('<I7I7', value)
    return ending - now
  end,

  is_stale = function(raw, now)
    return raw and #raw >= SIZE and struct.unpack('<I7', raw) - now > SKEW
  end,

  adjust = function() return nil end,

  -- Unless it is blocked for as long already.
  block = function(raw, now, arg, duration, reason)
    local _, ending = present(raw, now)
    if ending and ending >= now + duration then return nil end
    return struct.pack(FORMAT, now, now + duration, reason)
  end,
}
