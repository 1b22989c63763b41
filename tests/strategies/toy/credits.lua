-- Credits. The reference is credits.py.
--
-- KEYS     one string
-- stored   credits used (7 bytes)
-- ARGV     as words: amount
-- returns  the snapshot: credits used, 0, 0

local DAY = 86400000000

local function used(raw) return raw and (struct.unpack('<I7', raw)) or 0 end
local function packed(units) return struct.pack('<I7', math.max(0, units)) end

strategies.cr = {
  arguments = 1,
  changes = { 'top_up' },
  receipt = function() return 0 end,
  check = function(raw, now, cost, arg) return used(raw) + cost <= words[arg], used(raw), 0, 0 end,
  take = function(now, cost, arg, units) return packed(units + cost) end,
  lifetime = function() return DAY end,
  is_stale = function() return false end,
  adjust = function(raw, now, arg, receipt, delta) return packed(used(raw) + delta) end,
  top_up = function(raw, now, arg, units) return packed(used(raw) - units) end,
}
