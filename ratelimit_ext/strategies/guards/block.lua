-- Block: nothing passes until it ends, and then by degrees where it has a ramp. The reference, with
-- the reasons, is block.py.
--
-- KEYS     one string
-- stored   since (7 bytes), end (7 bytes), reason * 2 + ramped (1 bytes), passed (2 bytes): the block,
--          and how many its ramp has let through
-- ARGV     as words: none
-- returns  the snapshot: the wait in microseconds; the reason; 0

local SIZE, SKEW, STEP, STEPS, LONGEST_GROWN = 17, 1000000, 1000000, 6, 30000000
local RAMP = STEPS * STEP

local function present(raw, now)
  if not raw or #raw ~= SIZE then return nil end
  local since, ending, kind, passed = struct.unpack('<I7I7I1I2', raw)
  local back = since - now
  if back > SKEW then since, ending = since - back, ending - back end
  return since, ending, kind, passed
end

local function wait_of(now, cost, ending, kind, passed)
  local step = 0
  if kind % 2 == 1 then
    step = math.min(STEPS, math.max(0, math.floor((now - ending) / STEP)))
    while step < STEPS and passed + cost >= 2 ^ (step + 1) do step = step + 1 end
  end
  return math.max(0, ending + step * STEP - now)
end

local function packed(since, ending, kind, passed)
  return struct.pack('<I7I7I1I2', since, ending, kind, passed)
end

strategies.bl = {
  arguments = 0,
  idle = 0,

  receipt = function() return 0 end,

  check = function(raw, now, cost)
    local since, ending, kind, passed = present(raw, now)
    if not since then return true, 0, 0, 0 end
    local wait = wait_of(now, cost, ending, kind, passed)
    return wait == 0, wait, math.floor(kind / 2), 0, { since, ending, kind, passed }
  end,

  take = function(now, cost, arg, wait, reason, zero, block)
    if not block then return nil end
    local since, ending, kind, passed = unpack(block)
    return packed(since, ending, kind, passed + cost)
  end,

  lifetime = function(value, now)
    local _, ending, kind = struct.unpack('<I7I7I1', value)
    return ending + kind % 2 * RAMP - now
  end,

  is_stale = function(raw, now)
    local stored = raw and #raw == SIZE
    return stored and struct.unpack('<I7', raw) - now > SKEW
  end,

  adjust = function() return nil end,

  -- Unless it is blocked for as long already. `ramped` and `grows` are 0 or 1.
  block = function(raw, now, arg, duration, reason, ramped, grows)
    local since, ending, last = present(raw, now)
    if since then
      local opens = last % 2 == 1 and now >= ending and now < ending + RAMP
      if opens and grows == 1 then
        duration = math.max(duration, math.min(2 * (ending - since), LONGEST_GROWN))
      end
      if ending >= now + duration then return nil end
    end
    return packed(now, now + duration, reason * 2 + ramped, 0)
  end,
}
