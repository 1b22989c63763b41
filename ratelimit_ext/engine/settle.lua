-- Change buckets: correct what an earlier request took, or apply a change of the strategy's own.
--
-- KEYS     one bucket per change; a bucket may come twice; then the marker, if ARGV names its time to live
-- ARGV     now in microseconds, or '' for the server's clock; a JSON list of words, and in it for each
--          change: the strategy's code; the verb, which is the name of a function of the strategy; how
--          many numbers it has; the strategy's own arguments; a JSON list of these numbers, with
--          reservations behind the id of the hold and its lease in microseconds; optional: the marker's
--          time to live in microseconds
-- returns  for each change 1 where it was applied, 0 where it changes nothing, -1 where the stored bucket
--          is unreadable; nothing if the marker exists: these changes have been applied before
--
-- Verbs of every strategy: 'adjust' with a receipt and the difference in units, negative to give back;
-- with reservations: 'settle' with the id of a hold, the real cost, and 1 if more may be billed unseen;
-- 'release' with the id, and 1 if the call never was; 'renew' with what its hold took and, if it is
-- known, the cost so far; 'resume' with what a hold of another engine takes, and what is spent of it; in
-- a line: 'leave' with the id of a ticket. A strategy with reservations lists its other verbs as `changes`.

begin(ARGV[2])
local now = present_instant(ARGV[1])
local raws = redis.call('MGET', unpack(KEYS))
local stored, reply = {}, {} -- two changes may concern one bucket
local numbers, cursor, number, changes = cjson.decode(ARGV[3]), 1, 1, #KEYS

if ARGV[4] then
  local key = KEYS[changes]
  if raws[changes] then -- from now on for its time again
    redis.call('PEXPIRE', key, math.ceil(ARGV[4] / 1000) + 1)
    return reply
  end
  store(key, '1', tonumber(ARGV[4]))
  changes = changes - 1
end

for i = 1, changes do
  local strategy, verb = strategies[words[cursor]], words[cursor + 1]
  local arg, count = cursor + 3, words[cursor + 2]
  bucket, current = KEYS[i], strategy
  cursor = arg + strategy.arguments
  if strategy.of then
    hold, lease = numbers[number], numbers[number + 1]
    number = number + 2
  end
  local raw = stored[bucket]
  if raw == nil then raw = raws[i] end
  -- Only reads: what fails here is an unreadable bucket.
  local readable, value, lifetime =
    pcall(strategy[verb], raw, now, arg, unpack(numbers, number, number + count - 1))
  number = number + count
  if readable and value then
    stored[bucket] = store(bucket, value, lifetime or strategy.lifetime(value, now, arg))
  end
  reply[i] = readable and (value and 1 or 0) or -1
end
return reply
