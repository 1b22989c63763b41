-- Fair concurrency: calls in flight whose free slots the members of a group share. The reasons are in
-- fair_concurrency.py. It follows concurrency.lua; the calls are the holds of reservations.lua.
--
-- KEYS     one string
-- stored   calls in flight (7 bytes), and the member whose call has begun last after a wait (4). A limit
--          that is not fair stores the first, and reads no more
-- ARGV     as words: amount; period in microseconds; the number of the call's member
-- returns  the snapshot: calls in flight, 0, the number of the member

-- The numbers of members are below this.
local MEMBERS = 4294967296

local function opened(raw)
  if not raw or #raw < 7 then return 0, 0 end
  if #raw < 11 then return (struct.unpack('<I7', raw)), 0 end
  local calls, last = struct.unpack('<I7I4', raw)
  return calls, last
end

local function packed(calls, last)
  return struct.pack('<I7I4', math.max(0, calls), last)
end

strategies.fc = {
  arguments = 3,
  most = 0,
  ends_with_calls = true,

  receipt = function(_, _, _, member) return member end,

  check = function(raw, now, cost, arg)
    local calls, last = opened(raw)
    return calls + cost <= words[arg], calls, 0, words[arg + 2], last
  end,

  take = function(now, cost, arg, calls, _, _, last) return packed(calls + cost, last) end,

  lifetime = strategies.cc.lifetime,

  is_stale = strategies.cc.is_stale,

  adjust = function(raw, now, arg, receipt, delta)
    local calls, last = opened(raw)
    return packed(calls + delta, last)
  end,

  -- The tickets, those of each class by arrival, in the order of their turns. `running` are the members
  -- of the calls that run.
  turns = function(tickets, running, last)
    local counts, order, place = {}, {}, 1
    for _, member in ipairs(running) do
      counts[member] = (counts[member] or 0) + 1
    end
    while place <= #tickets do
      local rank, waiting = tickets[place].rank, {}
      while place <= #tickets and tickets[place].rank == rank do
        local member = tickets[place].member
        waiting[member] = waiting[member] or {}
        table.insert(waiting[member], tickets[place])
        place = place + 1
      end
      while next(waiting) do
        local first, fewest, nearest
        for member in pairs(waiting) do
          local count, distance = counts[member] or 0, (member - last - 1) % MEMBERS
          if member == 0 then count = -1 end -- from before the limit was fair
          if not first or count < fewest or count == fewest and distance < nearest then
            first, fewest, nearest = member, count, distance
          end
        end
        order[#order + 1] = table.remove(waiting[first], 1)
        counts[first], last = fewest + 1, first
        if #waiting[first] == 0 then waiting[first] = nil end
      end
    end
    return order
  end,
}
