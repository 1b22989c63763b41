-- Surge: a multiple of what the identity itself usually uses. The reasons are in surge.py.
--
-- KEYS     one string
-- stored   used (7 bytes), end (7 bytes), usual (7 bytes), windows (1 bytes): units in the window that
--          ends then, what is usual in one, and of how many windows that is known
-- ARGV     as words: amount; period in microseconds; multiple
-- returns  the snapshot: units used; the window's end; what the window may hold

local SIZE, PAST, MEAN_OF, KEPT, BEGINNING, MOST_AMOUNT = 22, 3, 8, 400, 96, 1000000000000

local function present(raw, now, amount, period)
  if not raw or #raw ~= SIZE then return 0, 0, 0, 0 end
  local used, ending, usual, windows = struct.unpack('<I7I7I7I1', raw)
  if ending > now then return used, math.min(ending, now + period), usual, windows end
  if used > 0 then
    local counted = math.min(used, MOST_AMOUNT)
    if windows >= PAST then counted = math.min(counted, math.max(2 * usual, amount)) end
    windows = math.min(windows + 1, MEAN_OF)
    usual = usual + math.floor((counted - usual) / windows)
  end
  return 0, 0, usual, windows
end

local function packed(used, ending, usual, windows)
  return struct.pack('<I7I7I7I1', used, ending, usual, windows)
end

strategies.sg = {
  arguments = 3,

  receipt = function(now, x, y) return y end,

  check = function(raw, now, cost, arg)
    local used, ending, usual, windows = present(raw, now, words[arg], words[arg + 1])
    local most = MOST_USED
    if windows >= PAST then most = math.max(words[arg], words[arg + 2] * usual) end
    if ending == 0 then ending = now + words[arg + 1] end
    return used == 0 or used + cost <= most, used, ending, most, { usual, windows }
  end,

  take = function(now, cost, arg, used, ending, most, past)
    return packed(used + cost, ending, past[1], past[2])
  end,

  lifetime = function(value, now, arg)
    local used, ending, _, windows = struct.unpack('<I7I7I7I1', value)
    if used == 0 and windows == 0 then return ending - now end
    return ending - now + (windows >= PAST and KEPT or BEGINNING) * words[arg + 1]
  end,

  is_stale = function(raw, now, arg)
    return raw and #raw == SIZE and struct.unpack('<I7', raw, 8) > now + words[arg + 1]
  end,

  adjust = function(raw, now, arg, receipt, delta)
    local used, ending, usual, windows = present(raw, now, words[arg], words[arg + 1])
    if delta <= 0 and ending ~= receipt then return nil end
    if ending == 0 then ending = now + words[arg + 1] end
    used = math.min(MOST_USED, math.max(0, used + delta))
    return packed(used, ending, usual, windows)
  end,
}
