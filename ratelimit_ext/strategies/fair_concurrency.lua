-- Fair concurrency: calls in flight whose free slots the members of a group share. The reasons are in
-- fair_concurrency.py. It follows concurrency.lua; the calls are the holds of reservations.lua.
--
-- KEYS     one string
-- stored   calls in flight (7 bytes), and the member whose call has begun last after a wait (4). Then for
--          each member who is ahead of those in line: class and member (5), and by how much (6), the one
--          who is most so first. A limit that is not fair stores the first number, and reads no more
-- ARGV     as words: amount; period in microseconds; the number of the call's member
-- returns  the snapshot: calls in flight, 0, the number of the member

-- The numbers of members are below this.
local MEMBERS = 4294967296
local HEAD, AHEAD, SIZE = 11, '<I5I6', 11
-- Of so many members is known that they are ahead, at most.
local MOST_AHEAD = 255
-- A call counts at least as this part of the dearest in line: no member waits for more turns of another.
local SPREAD = 256
local MOST_PRICE = 281474976710655 -- the largest that fits 6 bytes

-- The calls in flight, and who is next.
local function opened(raw)
  if not raw or #raw < 7 then return 0, { last = 0, ahead = '' } end
  if #raw < HEAD then return (struct.unpack('<I7', raw)), { last = 0, ahead = '' } end
  local calls, last = struct.unpack('<I7I4', raw)
  return calls, { last = last, ahead = string.sub(raw, HEAD + 1) }
end

local function packed(calls, state)
  return struct.pack('<I7I4', math.max(0, calls), state.last) .. state.ahead
end

-- How much members have reserved more than those in line, by class and member.
local function leads_of(state)
  local leads = {}
  for place = 1, #state.ahead, SIZE do
    local key, lead = struct.unpack(AHEAD, state.ahead, place)
    leads[key] = lead
  end
  return leads
end

-- What the call of a ticket reserves; one from before has an instant there.
local function price_of(ticket) return ticket.due <= MOST_PRICE and ticket.due or 0 end

strategies.fc = {
  arguments = 3,
  most = 0,
  ends_with_calls = true,

  receipt = function(_, _, _, member) return member end,

  check = function(raw, now, cost, arg)
    local calls, state = opened(raw)
    return calls + cost <= words[arg], calls, 0, words[arg + 2], state
  end,

  take = function(now, cost, arg, calls, _, _, state) return packed(calls + cost, state) end,

  lifetime = strategies.cc.lifetime,

  is_stale = strategies.cc.is_stale,

  adjust = function(raw, now, arg, receipt, delta)
    local calls, state = opened(raw)
    return packed(calls + delta, state)
  end,

  -- The tickets, those of each class by arrival, in the order of their turns. `running` are the members
  -- of the calls that run.
  turns = function(tickets, running, state)
    local counts, order, place, leads, last = {}, {}, 1, leads_of(state), state.last
    for _, member in ipairs(running) do
      counts[member] = (counts[member] or 0) + 1
    end
    while place <= #tickets do
      local rank, waiting, ahead, dearest = tickets[place].rank, {}, {}, 0
      while place <= #tickets and tickets[place].rank == rank do
        local ticket = tickets[place]
        local member = ticket.member
        if not waiting[member] then
          waiting[member], ahead[member] = {}, leads[rank * MEMBERS + member] or 0
          dearest = math.max(dearest, ahead[member])
        end
        table.insert(waiting[member], ticket)
        dearest = math.max(dearest, price_of(ticket))
        place = place + 1
      end
      local least_charge = math.ceil(dearest / SPREAD)
      while next(waiting) do
        local first, least, fewest, nearest
        for member in pairs(waiting) do
          local lead = ahead[member]
          if not first or lead <= least then
            local count, distance = counts[member] or 0, (member - last - 1) % MEMBERS
            if member == 0 then count = -1 end -- from before the limit was fair, and never ahead
            if not first or lead < least or count < fewest or count == fewest and distance < nearest then
              first, least, fewest, nearest = member, lead, count, distance
            end
          end
        end
        local ticket = table.remove(waiting[first], 1)
        ticket.lead, ticket.charge = least, math.max(price_of(ticket), least_charge)
        order[#order + 1] = ticket
        if first > 0 then ahead[first] = least + ticket.charge end
        counts[first], last = fewest + 1, first
        if #waiting[first] == 0 then waiting[first] = nil end
      end
    end
    return order
  end,

  -- A call in line begins. The least of its class that is in line is where all others are compared with.
  began = function(state, tickets, own)
    local key, leads, least, kept, texts = own.rank * MEMBERS + own.member, leads_of(state), own.lead, {}, {}
    for _, each in ipairs(tickets) do
      if each.rank == own.rank then least = math.min(least, each.lead) end
    end
    if own.member > 0 then leads[key] = (leads[key] or 0) + own.charge end
    for each, lead in pairs(leads) do
      if math.floor(each / MEMBERS) == own.rank then lead = lead - least end
      if lead > 0 then kept[#kept + 1] = { each, math.min(lead, MOST_PRICE) } end
    end
    table.sort(kept, function(one, other)
      if one[2] ~= other[2] then return one[2] > other[2] end
      return one[1] < other[1]
    end)
    for place = 1, math.min(#kept, MOST_AHEAD) do texts[place] = struct.pack(AHEAD, unpack(kept[place])) end
    state.ahead = table.concat(texts)
  end,
}
