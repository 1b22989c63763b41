-- Test that the server serves: that it runs scripts and takes writes. All workers that do so return
-- to it at the same time, so the first leaves a note of when that was.
--
-- KEYS     the note
-- ARGV     for how long it is kept after the last worker, in milliseconds
-- returns  for how many microseconds the note has existed

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local since = tonumber(redis.call('GET', KEYS[1]) or '') or now
redis.call('SET', KEYS[1], string.format('%.0f', since), 'PX', ARGV[1])
return math.max(0, now - since)
