-- Add what a worker has counted of a shadow (a limit in shadow, or a candidate) to its hour.
--
-- KEYS     a hash of the hour's totals; the sorted sets of this shadow: identities by how often it
--          would have denied them, and by the most that they used
-- ARGV     how long the hour is kept, in milliseconds; how many identities each set keeps; the
--          shadow; its requests; those that it would have denied; 1 where the worker has left
--          identities out, else 0; how many pairs of identity and count follow; pairs of identity
--          and the most used
-- stored   <shadow>:requests, <shadow>:denied; <shadow>:rough once counts of denials are estimates;
--          <shadow>:partial once identities are missing among the most used
-- returns  nothing
--
-- Counts of denials are a space-saving sketch: a new identity takes the place, and the count, of the
-- smallest. So no count is too small, and none too large by more than the smallest.

local lifetime, most, shadow, pairs_of_denied = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[7])
redis.call('HINCRBY', KEYS[1], shadow .. ':requests', ARGV[4])
redis.call('HINCRBY', KEYS[1], shadow .. ':denied', ARGV[5])
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], shadow .. ':rough', 1, shadow .. ':partial', 1)
end
local at = 8
for _ = 1, pairs_of_denied do
  local identity, count = ARGV[at], tonumber(ARGV[at + 1])
  local known = redis.call('ZSCORE', KEYS[2], identity)
  if not known and redis.call('ZCARD', KEYS[2]) >= most then
    local smallest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
    redis.call('ZREM', KEYS[2], smallest[1])
    known = smallest[2]
    redis.call('HSET', KEYS[1], shadow .. ':rough', 1)
  end
  redis.call('ZADD', KEYS[2], string.format('%.0f', (tonumber(known) or 0) + count), identity)
  at = at + 2
end
while at < #ARGV do
  local identity, used = ARGV[at], ARGV[at + 1]
  local known = redis.call('ZSCORE', KEYS[3], identity)
  if known then
    if tonumber(used) > tonumber(known) then redis.call('ZADD', KEYS[3], used, identity) end
  elseif redis.call('ZCARD', KEYS[3]) < most then
    redis.call('ZADD', KEYS[3], used, identity)
  else
    redis.call('HSET', KEYS[1], shadow .. ':partial', 1)
  end
  at = at + 2
end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], lifetime) end
