-- Add denials to their stream, and drop those that are too old or too many.
--
-- KEYS     a stream; of each entry the field d is a denial as JSON
-- ARGV     about how many entries are kept; for how many seconds; the entries
-- returns  how many entries there are

local most, keep_s = ARGV[1], tonumber(ARGV[2])
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', 'd', ARGV[i])
end
local oldest_s = tonumber(redis.call('TIME')[1]) - keep_s
redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f', oldest_s * 1000))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', keep_s * 1000))
return redis.call('XLEN', KEYS[1])
