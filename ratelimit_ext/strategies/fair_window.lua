-- Fair window: a fixed window whose budget the members of a group share. The reasons are in
-- fair_window.py. It follows fixed_window.lua.
--
-- KEYS     one string for the group, and right after it one for the member
-- stored   of the group: used (7 bytes), end (7), members (2), members of the last window (2), and the
--          instant at which this one was opened (7); a limit that is not fair has stored the first two.
--          Of a member: used (7), end (7), and when the group's window was opened that this is of (7)
-- ARGV     as words, of the group: those of a fixed window; of a member: amount; period in microseconds;
--          how long the window is, as far as it counts; how long the line takes to reach the amount;
--          the end of the calendar's window, or 0; the beginning and the end of the hours that count,
--          and the length of those before them
-- returns  the snapshot of the group: units used, the window's end, 0; of a member: 8192 times units
--          used, plus twice the number of members, plus 1 if this is one of them; the window's end; 4096
--          times units used by the group, plus the number of members of the last window

local FIRST, MOST_MEMBERS = 20, 4095 -- as in fair_window.py
local GROUP, MEMBER = '<I7I7I2I2I7', '<I7I7I7'
local ending_of = strategies.fw.ending_of

-- The group that was checked last: its members are checked next. A script without groups has none.
local group

-- The group's window that is open now, with the members of the last one; its end is 0 if none is.
local function opened(raw, now, period)
  if not raw or #raw < 14 then return { used = 0, ending = 0, members = 0, last = 0, began = now } end
  local used, ending = struct.unpack('<I7I7', raw)
  local members, last, began = 0, 0, now
  if #raw == 25 then members, last, began = struct.unpack('<I2I2I7', raw, 15) end
  if ending > now then return { used = used, ending = ending, members = members, last = last, began = began } end
  if now >= ending + period then members = 0 end
  return { used = 0, ending = 0, members = 0, last = members, began = now }
end

local function packed(window, used, ending, members)
  return struct.pack(GROUP, used, ending, members, window.last, window.began)
end

strategies.fg = {
  arguments = strategies.fw.arguments,

  receipt = strategies.fw.receipt,

  check = function(raw, now, cost, arg)
    local window, latest = opened(raw, now, words[arg + 1]), ending_of(now, arg)
    if window.ending == 0 or window.ending > latest then window.ending = latest end
    group = window
    return window.used + cost <= words[arg], window.used, window.ending, 0, window
  end,

  left = strategies.fw.left,

  take = function(now, cost, arg, used, ending, _, window)
    return packed(window, used + cost, ending, window.members + (cost > 0 and window.is_new and 1 or 0))
  end,

  lifetime = function(value, now, arg) return struct.unpack('<I7', value, 8) - now + words[arg + 1] end,

  marked = strategies.fw.lifetime,

  is_stale = strategies.fw.is_stale,

  adjust = function(raw, now, arg, receipt, delta)
    local window = opened(raw, now, words[arg + 1])
    if delta <= 0 and (window.ending == 0 or window.ending ~= receipt) then return nil end
    local used = math.min(MOST_USED, math.max(0, window.used + delta))
    return packed(window, used, window.ending > 0 and window.ending or ending_of(now, arg), window.members)
  end,
}

-- How much of the window that ends then has passed, as far as it counts.
local function passed_of(now, ending, arg)
  local total, last = words[arg + 2], words[arg + 4]
  if last == 0 then return math.min(total, now - (ending - words[arg + 1])) end
  if ending == last then
    return words[arg + 7] + math.max(0, math.min(now, words[arg + 6]) - words[arg + 5])
  end
  return ending < last and total or 0
end

-- What the line has reached by then.
local function reached(passed, arg)
  if passed >= words[arg + 3] then return words[arg] end
  return (multiply_divide(passed, words[arg], words[arg + 3]))
end

strategies.fm = {
  arguments = 8,

  receipt = strategies.fw.receipt,

  check = function(raw, now, cost, arg)
    local amount, used, ending, began = words[arg], 0, now, -1
    if raw and #raw == 21 then used, ending, began = struct.unpack(MEMBER, raw) end
    local alone = { used = 0, ending = ending, members = 0, last = 0, began = ending > now and began or 0 }
    local window = group or alone -- then it only tells what is used
    local known = began == window.began
    if not known then used = 0 end
    local has_room = known or window.members < MOST_MEMBERS
    window.is_new = has_room and not known
    local passed, total, expected = passed_of(now, window.ending, arg), words[arg + 2], window.last
    if expected == 0 then expected = math.ceil(FIRST * (total - passed) / total) end
    local members = math.max(window.members + (window.is_new and 1 or 0), expected)
    local line, part = reached(passed, arg), math.floor(amount / members)
    local fits = window.used + cost <= line
      or has_room and used + cost <= part
      or window.used == 0 and words[arg + 4] == 0
    local own = math.min(used, amount) * 8192 + 2 * window.members + (known and 1 or 0)
    local both = math.min(window.used, amount) * 4096 + window.last
    local left = math.min(amount - window.used, math.max(line - window.used, part - used))
    return fits, own, window.ending, both,
      { used = used, has_room = has_room, began = window.began, left = math.max(0, left) }
  end,

  left = function(_, _, _, _, _, state) return state.left end,

  take = function(now, cost, arg, _, ending, _, state)
    if not state.has_room then return nil end
    return struct.pack(MEMBER, state.used + cost, ending, state.began)
  end,

  lifetime = strategies.fw.lifetime,

  is_stale = function() return false end,

  adjust = function(raw, now, arg, receipt, delta)
    if not raw or #raw ~= 21 then return nil end
    local used, ending, began = struct.unpack(MEMBER, raw)
    if ending <= now or delta <= 0 and ending ~= receipt then return nil end
    return struct.pack(MEMBER, math.min(MOST_USED, math.max(0, used + delta)), ending, began)
  end,
}
