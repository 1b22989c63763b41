-- Reservations: any strategy with the estimates of calls that are not over yet. The reasons are in
-- reservations.py.
--
-- KEYS     one string; if there are more than INLINE holds, also a sorted set, whose name is the
--          string's with `:holds` behind it: the same slot, as the hash tag is the same. Holds that
--          were released before they came are in the string, up to MOST_INLINE
-- stored   the number of holds in the string (1 byte), and of those in the set (3); if there is any:
--          an instant before which no hold changes (7), the latest deadline of a hold (7), the holds
--          in the string: id (6), deadline (7), receipt (7), amount held (6), spent (6), final (6),
--          which lies elsewhere than at the receipt. Then what the strategy stores.
--          The mark of a call that may have been billed unseen is a hold of nothing, with the id 0,
--          before all others in the string.
--          In the set, for each hold: the same 38 bytes with the score -1 - id, and the id's 6 bytes
--          with the instant of its next change as the score
-- ARGV     as words: the strategy's own. The hold is that of the call (prelude.lua)
-- returns  the strategy's snapshot, after expired leases gave back what they held

local INLINE = 16
local EMPTY, HEAD, RECORD = 4, 18, 38
local HEAD_FORMAT, FORMAT = '<I1I3I7I7', '<I6I7I7I6I6I6'
local GRACE, LATE = 600000000, 120000000
local NEVER = 72057594037927935
-- The receipt of a hold that was released before it came, or after its settlement: its call never was, or
-- its worker is dead.
local RELEASED, ENDED = 1, 2
local MOST_HELD = 281474976710655 -- the largest cost that fits its 6 bytes
local MOST_INLINE = 255 -- the largest number that fits its byte
local MARK = '\0\0\0\0\0\0'
local LARGE = 64 -- the calls in flight of the largest plan: each may get this part of what is left

local function change_of(deadline, amount, spent)
  return amount > spent and deadline or deadline + GRACE
end

-- The holds of a bucket, and the strategy's part (nil: none). `state` is what its check leaves.
local function opened(raw)
  if raw and #raw >= HEAD then
    local inline, beside, change, latest = struct.unpack(HEAD_FORMAT, raw)
    if inline + beside > 0 then
      local ending = HEAD + inline * RECORD
      local records = string.sub(raw, HEAD + 1, ending)
      local inner = #raw > ending and string.sub(raw, ending + 1) or nil
      return { inline = records, beside = beside, change = change, latest = latest, state = nil }, inner
    end
  end
  local inner = raw and #raw > EMPTY and string.sub(raw, EMPTY + 1) or nil
  return { inline = '', beside = 0, change = NEVER, latest = 0, state = nil }, inner
end

local function store_set(key, expiry)
  local writes, set = pending[key], key .. ':holds'
  if not writes then return end
  pending[key] = nil
  for _, write in ipairs(writes) do redis.call(write[1], set, unpack(write, 2)) end
  redis.call('PEXPIRE', set, expiry)
end

-- Write to the set as soon as the bucket is stored.
local function later(holds, ...)
  holds.writes = holds.writes or {}
  holds.writes[#holds.writes + 1] = { ... }
end

-- What is stored, and for how long: the strategy's time, and until the last hold is forgotten.
local function joined(holds, inner, now, arg)
  local inline, beside = #holds.inline / RECORD, holds.beside
  local own = inner and inner ~= '' and current.of.lifetime(inner, now, arg) or 0
  if beside > 0 or holds.writes then
    local writes = pending[bucket] or {}
    for _, write in ipairs(holds.writes or {}) do writes[#writes + 1] = write end
    pending[bucket] = writes
  end
  if inline + beside == 0 then return '\0\0\0\0' .. (inner or ''), own end
  local head = struct.pack(HEAD_FORMAT, inline, beside, holds.change, holds.latest)
  return head .. holds.inline .. (inner or ''), math.max(holds.latest + GRACE - now, own)
end

local function add_to_set(holds, record, id, change)
  later(holds, 'ZADD', -1 - id, record, change, struct.pack('<I6', id))
end

local function add(holds, id, deadline, receipt, amount, spent, most_inline)
  local record = struct.pack(FORMAT, id, deadline, receipt, amount, spent, 0)
  local change = change_of(deadline, amount, spent)
  if holds.inline == '' and holds.beside == 0 then holds.latest = 0 end
  holds.change, holds.latest = math.min(holds.change, change), math.max(holds.latest, deadline)
  if #holds.inline < (most_inline or INLINE) * RECORD then
    holds.inline = id == 0 and record .. holds.inline or holds.inline .. record
  else
    if holds.beside == 0 then later(holds, 'DEL') end -- left over from a bucket that was dropped
    holds.beside = holds.beside + 1
    add_to_set(holds, record, id, change)
  end
end

-- Where the record of this id begins in the string, or nil.
local function place_of(holds, id)
  local packed, from = struct.pack('<I6', id), 1
  while true do
    local place = string.find(holds.inline, packed, from, true)
    if not place or (place - 1) % RECORD == 0 then return place end
    from = place + 1
  end
end

-- The record of this id, and where it begins in the string, or nil if it lies in the set; or nil.
local function found(holds, id)
  local place = place_of(holds, id)
  if place then return string.sub(holds.inline, place, place + RECORD - 1), place end
  if holds.expired and holds.expired[id] ~= nil then return holds.expired[id] end
  if holds.beside == 0 then return nil end
  return redis.call('ZRANGEBYSCORE', bucket .. ':holds', -1 - id, -1 - id)[1]
end

local function is_marked(holds) return string.sub(holds.inline, 1, 6) == MARK end

-- Count a call that may have been billed unseen as one in flight, for as long as its charge matters.
local function mark(holds, inner, now, arg)
  if not inner or is_marked(holds) then return end
  local lasts = math.min((current.of.marked or current.of.lifetime)(inner, now, arg), LONGEST_LIFETIME)
  add(holds, 0, math.max(0, now + lasts - GRACE), 0, 0, 0, MOST_INLINE)
end

-- Whether a hold was released before its admission arrived. Such holds lie in the string, so that
-- admissions need not look into the set; only if there are very many, also in the set.
local function is_released(holds, id)
  return place_of(holds, id) or #holds.inline > INLINE * RECORD and found(holds, id)
end

local function replace_inline(holds, place, record)
  local inline = holds.inline
  holds.inline = string.sub(inline, 1, place - 1) .. record .. string.sub(inline, place + RECORD)
end

local function adjusted(inner, now, arg, receipt, delta)
  if delta == 0 then return inner end
  return current.of.adjust(inner, now, arg, receipt, delta) or inner
end

-- Replace a record, found at this place.
local function put(holds, place, record, renewed)
  local id, deadline, _, amount, spent = struct.unpack(FORMAT, renewed)
  local change = change_of(deadline, amount, spent)
  holds.change, holds.latest = math.min(holds.change, change), math.max(holds.latest, deadline)
  if place then
    replace_inline(holds, place, renewed)
  else
    later(holds, 'ZREM', record)
    add_to_set(holds, renewed, id, change)
  end
end

local function remove(holds, place, record, id)
  if place then
    replace_inline(holds, place, '')
  else
    later(holds, 'ZREM', record, struct.pack('<I6', id))
    holds.beside = holds.beside - 1
  end
end

local function inline_records(holds)
  local records = {}
  for position = 1, #holds.inline, RECORD do
    records[#records + 1] = { struct.unpack(FORMAT, holds.inline, position) }
  end
  return records
end

-- Give back what expired leases still held, each as of its end; if its window was over by then, it
-- counts as spent. Forget those that expired long ago.
local function expired(raw, now, arg)
  local holds, inner = opened(raw)
  if now < holds.change then return holds, inner end

  local strategy = current.of
  local set, records, over, in_set, kept = bucket .. ':holds', inline_records(holds), {}, {}, {}
  holds.change = NEVER
  if holds.beside > 0 and redis.call('EXISTS', set) == 0 then
    -- The server has evicted the set, and its holds are forgotten. Their charges stay, but calls in
    -- flight would be counted for ever: then those in the string alone are counted.
    holds.beside = 0
    if strategy.ends_with_calls then
      inner = nil
      for _, record in ipairs(records) do inner = strategy.adjust(inner, now, arg, record[3], record[4]) end
    end
  elseif holds.beside > 0 then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', set, 0, now)) do
      local stored = found(holds, (struct.unpack('<I6', id)))
      local record = { struct.unpack(FORMAT, stored) }
      records[#records + 1], in_set[record] = record, stored
    end
    local next = redis.call('ZRANGEBYSCORE', set, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    holds.change = tonumber(next[2]) or NEVER
  end

  for _, record in ipairs(records) do
    if record[2] <= now and record[4] > record[5] then over[#over + 1] = record end
  end
  table.sort(over, function(one, other)
    if one[2] ~= other[2] then return one[2] < other[2] end
    return one[1] < other[1]
  end)
  for _, record in ipairs(over) do
    local deadline, receipt, amount, spent = unpack(record, 2, 5)
    local value = strategy.adjust(inner, deadline, arg, receipt, spent - amount)
    if value then
      inner, record[4] = value, spent
      if spent == 0 then record[3] = 0 end -- a full refund is charged nowhere
    else
      record[5] = amount
    end
  end

  holds.expired = {} -- of the set, until it is written
  for _, record in ipairs(records) do
    local id, deadline, _, amount, spent = unpack(record, 1, 5)
    local change, stored = change_of(deadline, amount, spent), in_set[record]
    local packed = deadline + GRACE > now and struct.pack(FORMAT, unpack(record, 1, 6))
    if packed then holds.change = math.min(holds.change, change) end
    if stored then
      holds.expired[id] = packed
      later(holds, 'ZREM', stored, struct.pack('<I6', id))
      if packed then add_to_set(holds, packed, id, change) else holds.beside = holds.beside - 1 end
    elseif packed then
      kept[#kept + 1] = packed
    end
  end
  holds.inline = table.concat(kept)
  return holds, inner
end

-- All holds, without one that is over.
local function records_of(holds, gone)
  local records, stored = inline_records(holds), {}
  if holds.beside > 0 then stored = redis.call('ZRANGEBYSCORE', bucket .. ':holds', '-inf', '(0') end
  for _, record in ipairs(stored) do
    local id = struct.unpack('<I6', record)
    local now = holds.expired and holds.expired[id]
    if now == nil then now = record end
    if now and id ~= gone then records[#records + 1] = { struct.unpack(FORMAT, now) } end
  end
  return records
end

-- The receipts of calls that take something, without one that is over.
strategies.members = function(holds, gone)
  local receipts = {}
  for _, record in ipairs(records_of(holds, gone)) do
    if record[4] > 0 then receipts[#receipts + 1] = record[3] end
  end
  return receipts
end

-- What a call gets of a budget: the only one what it is expected to cost, as it may use all that is
-- left, or up to half of that if its cost is unknown; any other an equal part, but what it needs.
local function granted(others, left, cost, claim)
  local alone, beside, usual, most = unpack(claim)
  if others == 0 then return math.max(cost, math.min(alone, math.floor(left / 2))) end
  usual = math.max(usual, math.floor(left / LARGE))
  return math.max(beside, math.min(most, usual, math.floor(left / (others + 1))))
end

-- Whether a call is denied only by what others hold and may give back: without them it needs its
-- cost, unless there is a mark.
local function is_in_use(holds, inner, now, cost, need, arg)
  local marks, held = is_marked(holds) and 1 or 0, 0
  for _, record in ipairs(records_of(holds)) do
    if record[2] > now then held = held + record[4] end
  end
  return holds.others > marks and (current.of.check(inner, now, (marks == 1 and need or cost) - held, arg))
end

-- A verb of the strategy that applies to its own part.
local function own_change(verb)
  return function(raw, now, word, ...)
    local holds, inner = expired(raw, now, word)
    local value = current.of[verb](inner, now, word, ...)
    if value then return joined(holds, value, now, word) end
  end
end

local reserved = {
  check = function(raw, now, cost, arg, claim)
    local holds, inner = expired(raw, now, arg)
    local others = #holds.inline / RECORD + holds.beside
    local need = claim and others > 0 and claim[2] or cost
    local fits, x, y, z, state = current.of.check(inner, now, need, arg)
    if claim then
      holds.others = others
      if cost == 0 then -- of a free model
        holds.granted = 0
      elseif fits then
        holds.granted = granted(others, current.of.left(now, arg, x, y, z, state), cost, claim)
      else
        holds.granted = is_in_use(holds, inner, now, cost, need, arg) and -1 or 0
      end
    end
    holds.state, holds.inner = state, inner
    return fits, x, y, z, holds
  end,

  take = function(now, cost, arg, x, y, z, holds)
    local strategy, spent = current.of, keeps and not current.of.ends_with_calls and cost or 0
    if cost > 0 and holds.granted then cost = holds.granted end
    if cost > 0 and lease > 0 then
      if is_released(holds, hold) then return joined(holds, holds.inner, now, arg) end
      add(holds, hold, now + lease, strategy.receipt(now, x, y, z), cost, math.min(spent, cost))
    end
    return joined(holds, strategy.take(now, cost, arg, x, y, z, holds.state), now, arg)
  end,

  -- A hold for an estimate of 0, which is charged nowhere.
  reserve = function(raw, now, arg)
    if lease == 0 then return nil end
    local holds, inner = expired(raw, now, arg)
    if is_released(holds, hold) then return nil end
    add(holds, hold, now + lease, 0, 0, 0)
    return joined(holds, inner, now, arg)
  end,

  lifetime = function(value, now, arg)
    local ending, longest = EMPTY, 0
    if #value >= HEAD then
      local inline, beside, _, latest = struct.unpack(HEAD_FORMAT, value)
      if inline + beside > 0 then
        ending, longest = HEAD + inline * RECORD, latest + GRACE - now
      end
    end
    if #value == ending then return longest end
    return math.max(longest, current.of.lifetime(string.sub(value, ending + 1), now, arg))
  end,

  is_stale = function(raw, now, arg)
    local _, inner = opened(raw)
    return current.of.is_stale(inner, now, arg)
  end,

  adjust = own_change('adjust'),

  -- The call is over, and its cost is known; the hold is removed. Unseen: it may be billed more.
  settle = function(raw, now, arg, id, actual, unseen)
    local holds, inner = expired(raw, now, arg)
    local record, place = found(holds, id)
    if not record then return nil end
    local _, _, receipt, amount, _, final = struct.unpack(FORMAT, record)
    if amount == 0 and (receipt == RELEASED or receipt == ENDED) then return nil end -- it is sent again
    actual = math.max(math.min(actual, MOST_HELD), final)
    inner = adjusted(inner, now, arg, receipt, actual - amount)
    remove(holds, place, record, id)
    if unseen == 1 then mark(holds, inner, now, arg) end
    return joined(holds, inner, now, arg)
  end,

  -- The lease ends now, also if the hold is yet to come. Undone: the call never was, so what it keeps
  -- after its lease goes back, too.
  release = function(raw, now, arg, id, undone)
    local holds, inner = expired(raw, now, arg)
    local record, place = found(holds, id)
    if not record then
      add(holds, id, now + LATE - GRACE, undone == 1 and RELEASED or ENDED, 0, 0, MOST_INLINE)
      return joined(holds, inner, now, arg)
    end
    local _, deadline, receipt, amount, spent, final = struct.unpack(FORMAT, record)
    if undone == 1 then spent = final end
    local value = amount > spent and current.of.adjust(inner, now, arg, receipt, spent - amount)
    if deadline <= now and not value then return nil end
    if value then
      inner, amount = value, spent
      if spent == 0 then receipt = 0 end
    else
      spent = amount
    end
    put(holds, place, record, struct.pack(FORMAT, id, now, receipt, amount, spent, final))
    return joined(holds, inner, now, arg)
  end,

  -- The call goes on, with its cost so far if that is known. What its lease gave back when it expired
  -- is taken again, now.
  renew = function(raw, now, arg, cost, so_far)
    local holds, inner = expired(raw, now, arg)
    local record, place = found(holds, hold)
    if not record then return nil end
    local _, deadline, receipt, charged, spent, final = struct.unpack(FORMAT, record)
    spent = math.min(so_far or spent, MOST_HELD)
    local amount = math.max(charged, spent, math.min(cost, MOST_HELD))
    if deadline <= now and amount > charged then
      local present = current.of.receipt(now, select(2, current.of.check(inner, now, 0, arg)))
      if present ~= receipt then receipt, final = present, charged end
    end
    spent = math.max(spent, final) -- what lies elsewhere is not given back
    inner = adjusted(inner, now, arg, receipt, amount - charged)
    put(holds, place, record, struct.pack(FORMAT, hold, now + lease, receipt, amount, spent, final))
    return joined(holds, inner, now, arg)
  end,

  -- A call in flight that another engine has admitted holds its amount from now on.
  resume = function(raw, now, arg, amount, spent)
    local holds, inner = expired(raw, now, arg)
    local record, place = found(holds, hold)
    if record then
      local _, deadline, reason, charged = struct.unpack(FORMAT, record)
      if charged > 0 or deadline > now then return nil end
      remove(holds, place, record, hold) -- released before
      if reason == ENDED then amount = math.min(amount, spent) end
    end
    local receipt = current.of.receipt(now, select(2, current.of.check(inner, now, 0, arg)))
    amount = math.min(amount, MOST_HELD)
    inner = adjusted(inner, now, arg, receipt, amount)
    add(holds, hold, now + lease, receipt, amount, math.min(spent, amount))
    return joined(holds, inner, now, arg)
  end,

  -- All holds by their ids, and the value without what they take: another engine goes on.
  hand_over = function(raw, now, arg)
    local holds, inner = expired(raw, now, arg)
    local records = records_of(holds)
    table.sort(records, function(one, other) return one[1] < other[1] end)
    for _, record in ipairs(records) do inner = adjusted(inner, now, arg, record[3], -record[4]) end
    return records, joined(opened(nil), inner, now, arg)
  end,
}

local NAMES = {
  'check', 'take', 'reserve', 'lifetime', 'is_stale', 'adjust', 'settle', 'release', 'renew', 'resume',
  'hand_over',
}

-- The entry of a strategy with reservations; the strategy itself is its `of`.
strategies.reservations = function(strategy)
  store_pending = store_set
  local entry = { of = strategy, arguments = strategy.arguments, ends_with_calls = strategy.ends_with_calls }
  local verbs = strategy.changes or {}
  -- While a function is loaded, there is no ipairs.
  for place = 1, #NAMES do entry[NAMES[place]] = reserved[NAMES[place]] end
  for place = 1, #verbs do entry[verbs[place]] = own_change(verbs[place]) end
  return entry
end
