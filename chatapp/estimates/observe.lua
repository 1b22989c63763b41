-- Add calls to a model's recent outputs, and halve them when they are many.
--
-- KEYS     the model's outputs
-- ARGV     the weight of a call; the most that all weights together may be; how long to keep it all,
--          in milliseconds; then of each bucket that calls fell into: bucket, number of calls
-- returns  all buckets with their weights: bucket, weight, bucket, weight …
--
-- A hash of weights by bucket. The reference is Histogram.with_calls.

for i = 4, #ARGV, 2 do
  local weight = string.format('%.0f', tonumber(ARGV[1]) * tonumber(ARGV[i + 1]))
  redis.call('HINCRBY', KEYS[1], ARGV[i], weight)
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local kept = redis.call('HGETALL', KEYS[1])
local total = 0
for i = 2, #kept, 2 do total = total + tonumber(kept[i]) end
if total <= tonumber(ARGV[2]) then return kept end

local halves = {}
for i = 1, #kept, 2 do
  local half = math.floor(tonumber(kept[i + 1]) / 2)
  if half == 0 then
    redis.call('HDEL', KEYS[1], kept[i])
  else
    redis.call('HSET', KEYS[1], kept[i], string.format('%.0f', half))
    halves[#halves + 1] = kept[i]
    halves[#halves + 1] = string.format('%.0f', half)
  end
end
return halves
