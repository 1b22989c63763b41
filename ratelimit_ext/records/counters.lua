-- Add what a worker has counted of decisions to the counts of an hour.
--
-- KEYS     a hash of the hour
-- ARGV     how long it is kept, in milliseconds; how many counts it has at most; pairs of count's
--          name and what to add
-- stored   <minute since 1970>:<outcome>:<name of the limit>; counts: how many there are
-- returns  nothing

local known = redis.call('HINCRBY', KEYS[1], 'counts', 0)
local most, new = tonumber(ARGV[2]), 0
for i = 3, #ARGV, 2 do
  local name, count = ARGV[i], tonumber(ARGV[i + 1])
  if redis.call('HINCRBY', KEYS[1], name, count) == count then
    if known + new < most then
      new = new + 1
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
end
redis.call('HINCRBY', KEYS[1], 'counts', new)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
