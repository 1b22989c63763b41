-- Fair concurrency: calls in flight whose free slots the members of a group share. The reference, with
-- the reasons, is fair_concurrency.py. It follows concurrency.lua; the calls are the holds of
-- reservations.lua.
--
-- KEYS     one string
-- stored   calls in flight and in line (7 bytes), and the member whose call has begun last after a
--          wait (4). A limit that is not fair stores the first, and reads no more
-- ARGV     as words: amount, more for a call in line; period in microseconds; the amount of all
--          classes; the receipt of a call of the member: its number, and WAITS more in line
-- returns  the snapshot: calls in flight, 0, the receipt

local WAITS = 4503599627370496

local function opened(raw)
  if not raw or #raw < 7 then return 0, 0 end
  if #raw < 11 then return (struct.unpack('<I7', raw)), 0 end
  local calls, last = struct.unpack('<I7I4', raw)
  return calls, last
end

local function packed(calls, last)
  return struct.pack('<I7I4', math.max(0, calls), last)
end

-- The calls in line whose turn it is, the first one first.
local function turns(calls, amount, raw)
  local running, waiting, free = {}, {}, amount
  for _, call in ipairs(calls) do
    local member = call[3] % WAITS
    if call[3] < WAITS then
      running[member] = (running[member] or 0) + 1
      free = free - 1
    else
      waiting[member] = waiting[member] or {}
      table.insert(waiting[member], call)
    end
  end
  for _, own in pairs(waiting) do
    table.sort(own, function(one, other) -- a lease begins with the wait
      if one[2] ~= other[2] then return one[2] < other[2] end
      return one[1] < other[1]
    end)
  end
  local found, _, last = {}, opened(raw)
  while #found < free and next(waiting) do
    local first, fewest, nearest
    for member in pairs(waiting) do
      local count, distance = running[member] or 0, (member - last - 1) % WAITS
      if not first or count < fewest or count == fewest and distance < nearest then
        first, fewest, nearest = member, count, distance
      end
    end
    found[#found + 1] = table.remove(waiting[first], 1)
    running[first], last = fewest + 1, first
    if #waiting[first] == 0 then waiting[first] = nil end
  end
  return found
end

strategies.fc = {
  arguments = 4,
  ends_with_calls = true,

  receipt = function(_, _, _, place) return place end,

  check = function(raw, now, cost, arg)
    local calls, last = opened(raw)
    return calls + cost <= words[arg], calls, 0, words[arg + 3], last
  end,

  take = function(now, cost, arg, calls, _, _, last) return packed(calls + cost, last) end,

  lifetime = strategies.cc.lifetime,

  is_stale = strategies.cc.is_stale,

  adjust = function(raw, now, arg, receipt, delta)
    local calls, last = opened(raw)
    return packed(calls + delta, last)
  end,

  turns = turns,

  -- The receipt of a call that begins, as it is its turn, and what is stored then. One that another
  -- engine has admitted, or that came before the limit was fair, begins as without members.
  begin = function(calls, id, arg, raw)
    for place = 1, math.min(#calls, words[arg]) do
      local call = calls[place]
      if call[1] == id and call[3] < WAITS then return call[3], raw end
    end
    for place, call in ipairs(turns(calls, words[arg], raw)) do
      if call[1] == id then
        local member = call[3] - WAITS
        -- Only the first moves the ring: if a later one begins before it, it is still the first.
        return member, place == 1 and packed(opened(raw), member) or raw
      end
    end
  end,
}
