-- Line: any strategy with requests that wait for their turn. The reasons are in
-- line.py.
--
-- KEYS     one string, the strategy's; while requests wait, also the string with `:line` behind its
--          name: the same slot, as the hash tag is the same
-- stored   in the latter, for each request (a ticket): id (6 bytes), since when it waits (7), until when
--          the ticket holds (7), the start that the request knows, or with members what it reserves
--          (7), its cost (6), what its class may use (6), the number of higher classes (1), its member (4)
-- ARGV     as words: the strategy's own; the longest wait in microseconds; the number of higher classes.
--          The ticket's id is the hold's, and `waited` is for how long its request has waited
-- returns  the strategy's snapshot, with the costs of those that come first as if they were taken

local FORMAT, SIZE = '<I6I7I7I7I6I6I1I4', 44
-- A request looks again that long after its turn, or after its last look, in microseconds: else its
-- worker has died, and the ticket ends. A start that is earlier by more than NEWS wakes the request.
local LOOK, NEWS = 5000000, 1000

local function tickets_of(now)
  local raw, tickets = redis.call('GET', bucket .. ':line'), {}
  for place = 1, raw and #raw or 0, SIZE do
    local id, since, ends, due, cost, most, rank, member = struct.unpack(FORMAT, raw, place)
    if ends > now then
      tickets[#tickets + 1] = {
        id = id, since = since, ends = ends, due = due, cost = cost, most = most, rank = rank,
        member = member,
      }
    end
  end
  return tickets
end

-- A full server may refuse: then the request is not in line, and asks again.
local function keep(tickets, now)
  local packed, latest = {}, 0
  for place, each in ipairs(tickets) do
    packed[place] = struct.pack(
      FORMAT, each.id, each.since, each.ends, each.due, each.cost, each.most, each.rank, each.member
    )
    latest = math.max(latest, each.ends)
  end
  if latest == 0 then return redis.call('DEL', bucket .. ':line') end
  redis.pcall('SET', bucket .. ':line', table.concat(packed), 'PX', math.ceil((latest - now) / 1000) + 1)
end

local function place_of(tickets, id)
  for place, each in ipairs(tickets) do
    if each.id == id then return place end
  end
end

-- The tickets in the order of their turns; `gone` is the id of a call that is over.
local function in_order(tickets, base, state, gone)
  table.sort(tickets, function(one, other)
    if one.rank ~= other.rank then return one.rank < other.rank end
    if one.since ~= other.since then return one.since < other.since end
    return one.id < other.id
  end)
  if not base.turns then return tickets end
  return base.turns(tickets, strategies.members(state, gone), state.state)
end

-- The next ones learn that it is their turn, or will be earlier than they know.
local function wake(inner, tickets, raw, now, arg, gone)
  local base = inner.of or inner
  local _, x, y, z, state = inner.check(raw, now, 0, arg)
  local before = 0
  for _, each in ipairs(in_order(tickets, base, state, gone)) do
    local missing = x + before + each.cost - each.most
    local due = base.due and base.due(now, arg, missing, y, z) or 0
    local has_room = missing + (y > 0 and 1 or 0) <= 0
    if has_room and not base.due or base.due and each.due - math.max(due, now) > NEWS then
      redis.pcall('PUBLISH', 'ratelimit_ext:turns', string.format('%.0f', each.id))
    end
    if not has_room then return end
    before = before + each.cost
  end
end

strategies.line = function(inner)
  local base, own_words = inner.of or inner, inner.arguments
  local entry = {
    of = inner.of,
    arguments = own_words + 2,
    ends_with_calls = inner.ends_with_calls,
    reserve = inner.reserve,
    lifetime = inner.lifetime,
    is_stale = inner.is_stale,
    renew = inner.renew,
    resume = inner.resume,
    hand_over = inner.hand_over,
  }

  entry.check = function(raw, now, cost, arg)
    local fits, x, y, z, state = inner.check(raw, now, cost, arg)
    local tickets, before = tickets_of(now), 0
    local wait, rank, most = words[arg + own_words], words[arg + own_words + 1], words[arg + base.most]
    local place = place_of(tickets, hold)
    local own, is_stored = tickets[place], place
    if not own and waited then
      own = { id = hold, since = now - waited, member = base.turns and z or 0 }
      if waited == 0 then -- behind all others, also if the clock was set back
        for _, each in ipairs(tickets) do own.since = math.max(own.since, each.since + 1) end
      end
      tickets[#tickets + 1] = own
    end
    if own then
      own.cost, own.most, own.rank = cost, most, rank
      if base.turns then own.due = price end
    end
    if #tickets > 0 then
      tickets = in_order(tickets, base, state)
      for _, each in ipairs(tickets) do
        if each == own then break end
        if own or each.rank <= rank then before = before + each.cost end
      end
    end
    local missing = x + before + cost - most
    fits = missing + (y > 0 and 1 or 0) <= 0
    local line = { state = state, raw = raw, tickets = tickets, before = before, own = own, is_stored = is_stored }
    if not fits and waited and cost <= most then
      local due = base.due and base.due(now, arg, missing, y, z) or now
      if due - now <= wait - waited then line.due = due end
    end
    return fits, x + before, y, z, line
  end

  -- Whether a request that does not fit may wait until it does.
  entry.may_wait = function(line) return line.due end

  -- Nor does one wait here that fits, and that another limit keeps back: until it asks again, others
  -- go first.
  entry.place = function(now, arg, line, fits)
    local own, left = line.own, words[arg + own_words] - waited
    if fits then
      if not line.is_stored then return end
      table.remove(line.tickets, place_of(line.tickets, own.id))
      keep(line.tickets, now)
      return wake(inner, line.tickets, line.raw, now, arg)
    end
    if not base.turns then own.due = line.due end
    own.ends = math.min(now + left, math.max(line.due, now + LOOK) + LOOK)
    keep(line.tickets, now)
  end

  entry.take = function(now, cost, arg, x, y, z, line)
    local tickets, state = line.tickets, line.state
    local own, is_first = cost > 0 and line.is_stored and line.own, tickets[1] == line.own
    if base.turns and cost > 0 and line.own and (own or #tickets > 1) then
      base.began(state.state, tickets, line.own)
    end
    if own then
      if base.turns and is_first then state.state.last = own.member end -- it moves the ring
      table.remove(tickets, place_of(tickets, own.id))
      keep(tickets, now)
    end
    local value, lifetime = inner.take(now, cost, arg, x - line.before, y, z, state)
    if own and #tickets > 0 then wake(inner, tickets, value, now, arg) end
    return value, lifetime
  end

  local function changed(verb)
    return function(raw, now, word, id, ...) -- not `arg`, which is Lua's in such a function
      local value, lifetime
      if inner[verb] then value, lifetime = inner[verb](raw, now, word, id, ...) end
      local tickets = tickets_of(now)
      local place = verb ~= 'adjust' and place_of(tickets, id)
      if place then
        table.remove(tickets, place)
        keep(tickets, now)
      end
      if #tickets > 0 then
        wake(inner, tickets, value or raw, now, word, verb ~= 'adjust' and id)
        if value and base.turns then -- the ring is needed while requests wait, also without calls
          for _, each in ipairs(tickets) do lifetime = math.max(lifetime, each.ends - now) end
        end
      end
      return value, lifetime
    end
  end
  entry.adjust, entry.leave = changed('adjust'), changed('leave')
  if inner.settle then entry.settle, entry.release = changed('settle'), changed('release') end
  return entry
end
