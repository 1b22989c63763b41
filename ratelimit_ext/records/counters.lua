-- Add what a worker has counted of decisions to the counts of an hour.
--
-- KEYS     a hash of the hour
-- ARGV     how long it is kept, in milliseconds; how many counts it has at most; pairs of count's
--          name and what to add
-- stored   <minute since 1970>:<outcome>:<name of the limit>
-- returns  nothing

local most = tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  local name, count = ARGV[i], tonumber(ARGV[i + 1])
  local is_new = redis.call('HINCRBY', KEYS[1], name, count) == count
  if is_new and redis.call('HLEN', KEYS[1]) > most then redis.call('HDEL', KEYS[1], name) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
