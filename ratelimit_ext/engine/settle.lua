-- Change buckets: correct what an earlier request took, block, report.
--
-- KEYS     one bucket per change; a bucket may come twice; then the marker, if ARGV names its time to live
-- ARGV     now in microseconds, or '' for the server's clock; a JSON list of words, and in it
--          for each change: the strategy's code; what happens; two numbers; the strategy's own
--          arguments. 'adjust' with a receipt and the difference in units, negative to give back; 'settle' with the id of
--          a hold and the real cost; 'renew' with what its hold took and the cost so far; 'close'
--          with microseconds and the manner of a block; 'report' with an amount and what is used of it,
--          and with the period as one argument more; optional: the marker's time to live in microseconds
-- returns  for each correction 1 where it was applied, 0 where the charge no longer matters; nothing
--          if the marker exists: these changes have been applied before

read_words(ARGV[2])
local now = present_instant(ARGV[1])
local raws = redis.call('MGET', unpack(KEYS))
local stored, reply = {}, {} -- two changes may concern one bucket
local cursor, changes = 1, #KEYS

if ARGV[3] then
  if raws[changes] then return reply end
  store(KEYS[changes], '1', tonumber(ARGV[3]))
  changes = changes - 1
end

for i = 1, changes do
  local strategy = strategies[words[cursor]]
  local verb = words[cursor + 1]
  local raw = stored[KEYS[i]]
  if raw == nil then raw = raws[i] end
  local arg = cursor + 4
  local value = strategy[verb](raw, now, words[cursor + 2], words[cursor + 3], arg)
  if value then stored[KEYS[i]] = store(KEYS[i], value, strategy.lifetime(value, now, arg)) end
  reply[i] = value and 1 or 0
  cursor = arg + strategy.arguments + (verb == 'report' and 1 or 0)
end
return reply
