-- Take the calls in flight out of a bucket, for another engine. It runs in process alone.
--
-- KEYS     the bucket
-- ARGV     now in microseconds; a JSON list of words: the strategy's code, its own arguments
-- returns  one text with four numbers for each call, in their order: the id of its hold, when its lease
--          ends, what it holds, and what is spent of it

begin(ARGV[2])
local now, list = ARGV[1], {}
bucket, current = KEYS[1], strategies[words[1]]
local raw = redis.call('MGET', bucket)[1]
if raw then
  local calls, value, lifetime = current.hand_over(raw, now, 2)
  for _, call in ipairs(calls) do
    list[#list + 1] = string.format('%.0f %.0f %.0f %.0f', call[1], call[2], call[4], call[5])
  end
  if #calls > 0 then
    redis.call('DEL', bucket .. ':holds')
    redis.call('DEL', bucket .. ':line') -- those who wait come again where the calls go
    store(bucket, value, lifetime)
  end
end
return { table.concat(list, ' ') }
