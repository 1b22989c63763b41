-- Set or remove one override, and write to the log, in one step; or only write to the log.
--
-- KEYS     a hash of overrides, by limit and identity; a list, the log, its newest entry first
-- stored   each override and each entry as JSON
-- ARGV     the entry; how many entries the log keeps; how many overrides there may be; the field of
--          the override (empty: only the entry is written); the override (empty: it is removed);
--          further fields to remove, as they have expired
-- returns  1 if the hash or only the log was changed; 0 if there was no such override; -1 if there
--          are too many

local entry, most_entries, most_overrides, field, override = unpack(ARGV, 1, 5)

for i = 6, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
if field ~= '' then
  if override == '' then
    if redis.call('HDEL', KEYS[1], field) == 0 then return 0 end
  else
    local is_new = redis.call('HEXISTS', KEYS[1], field) == 0
    if is_new and redis.call('HLEN', KEYS[1]) >= tonumber(most_overrides) then return -1 end
    redis.call('HSET', KEYS[1], field, override)
  end
end
redis.call('LPUSH', KEYS[2], entry)
redis.call('LTRIM', KEYS[2], 0, most_entries - 1)
return 1
