-- Fixed window, opened by the first call or by the calendar. The reference is fixed_window.py.
--
-- KEYS     one string
-- stored   used (7 bytes), end (7 bytes): units taken, and the instant at which the window ends
-- ARGV     amount; period in microseconds; the next two ends of the calendar's windows, or 0 and 0
-- returns  the reading: units used, the window's end, 0

local function take(now, cost, arg, used, ending)
  return struct.pack('<I7I7', used + cost, ending), ending - now
end

strategies.fw = {
  arguments = 4,

  check = function(raw, now, cost, arg)
    local ending = tonumber(ARGV[arg + 2])
    if ending == 0 then
      ending = now + tonumber(ARGV[arg + 1])
    elseif now >= ending then
      ending = tonumber(ARGV[arg + 3])
    end
    local used = 0
    if raw and #raw == 14 then
      local stored, stored_ending = struct.unpack('<I7I7', raw)
      if stored_ending > now then
        used = stored
        if stored_ending < ending then ending = stored_ending end
      end
    end
    return used + cost <= tonumber(ARGV[arg]), used, ending, 0
  end,

  take = take,

  adjust = function(raw, now, receipt, delta, arg)
    if not raw or #raw ~= 14 then return nil end
    local used, ending = struct.unpack('<I7I7', raw)
    if ending <= now or ending ~= receipt then return nil end
    return take(now, math.max(delta, -used), arg, used, ending)
  end,
}
