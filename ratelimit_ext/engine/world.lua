-- What the scripts need of a server, in this process: the commands that they call, over tables, and the
-- libraries `struct` and `cjson`. It runs in LuaJIT and in Lua 5.1.
--
-- KEYS     none
-- ARGV     none
-- returns  what engine/memory.py calls

-- Scripts branch more than they loop, so only what is really hot is compiled (measured in decision 0034).
if jit then jit.opt.start('hotloop=200', 'hotexit=100', 'maxside=20', 'maxtrace=4000', 'maxmcode=8192') end

local floor, FULL, OK = math.floor, { err = 'OOM' }, { ok = 'OK' }

-- Where keys lie, now, and whether this script has written.
local world, now, has_written

-- Strings, sorted sets, and when each key expires; for at most so many strings. Once in so many calls
-- what has expired is dropped. `ring` is called with the ids that are published.
local function new_world(most, every, ring)
  return {
    values = {}, sets = {}, expiries = {}, count = 0, most = most, every = every, left = every, ring = ring,
  }
end

local function set(key, value, expiry)
  if world.values[key] == nil then world.count = world.count + 1 end
  world.values[key], world.expiries[key] = value, expiry
end

local function drop(key)
  local is_value = world.values[key] ~= nil
  if is_value then world.count = world.count - 1 end
  world.values[key], world.sets[key], world.expiries[key] = nil, nil, nil
  return is_value
end

-- Drop it if it has expired: a clock that is set back must not revive it.
local function refresh(key)
  local expiry = world.expiries[key]
  if expiry and expiry <= now then drop(key) end
end

local function enter(chosen, instant)
  world, now, has_written = chosen, instant, false
  world.left = world.left - 1
  if world.left > 0 then return end
  world.left = world.every
  for key, expiry in pairs(world.expiries) do
    if expiry <= now then drop(key) end
  end
end

-- A sorted set: members in their order, and their scores.
local function is_before(set, one, score, other)
  local own = set.scores[one]
  return own < score or own == score and one < other
end

-- The place of the first member that is not before this one.
local function place_of(set, score, member)
  local low, high = 1, #set + 1
  while low < high do
    local middle = floor((low + high) / 2)
    if is_before(set, set[middle], score, member) then low = middle + 1 else high = middle end
  end
  return low
end

local function remove(set, member)
  local score = set.scores[member]
  if not score then return 0 end
  table.remove(set, place_of(set, score, member))
  set.scores[member] = nil
  return 1
end

-- The score of a bound, and whether it excludes its own.
local function bound_of(word)
  if word == '-inf' then return -math.huge end
  if word == '+inf' then return math.huge end
  local text = string.match(word, '^%((.*)$')
  return tonumber(text or word), text ~= nil
end

local commands = {
  MGET = function(...)
    local found = {}
    for place = 1, select('#', ...) do
      local key = select(place, ...)
      refresh(key)
      found[place] = world.values[key] or false
    end
    return found
  end,

  GET = function(key)
    refresh(key)
    return world.values[key] or false
  end,

  -- A full server refuses what takes memory, unless the script has written before.
  SET = function(key, value, _, lifetime_ms)
    if world.count >= world.most and not has_written then return FULL end
    has_written = true
    set(key, value, now + lifetime_ms * 1000)
    return OK
  end,

  SETRANGE = function(key, offset, value)
    if world.count >= world.most and not has_written then return FULL end
    has_written = true
    local before = world.values[key]
    world.values[key] = string.sub(before, 1, offset) .. value .. string.sub(before, offset + #value + 1)
    return #before
  end,

  PEXPIRE = function(key, lifetime_ms)
    has_written = true
    if not world.values[key] and not world.sets[key] then return 0 end
    world.expiries[key] = now + lifetime_ms * 1000
    refresh(key)
    return 1
  end,

  DEL = function(key)
    has_written = true
    return drop(key) and 1 or 0
  end,

  EXISTS = function(key)
    refresh(key)
    return world.sets[key] and 1 or 0
  end,

  PUBLISH = function(_, id) world.ring(tonumber(id)) end,

  ZADD = function(key, ...)
    local set, words = world.sets[key], { ... }
    if not set then
      set = { scores = {} }
      world.sets[key] = set
    end
    for place = 1, #words, 2 do
      local score, member = words[place], words[place + 1]
      remove(set, member)
      table.insert(set, place_of(set, score, member), member)
      set.scores[member] = score
    end
  end,

  ZREM = function(key, ...)
    local set = world.sets[key]
    for place = 1, set and select('#', ...) or 0 do remove(set, (select(place, ...))) end
    if set and #set == 0 then drop(key) end
  end,

  -- With WITHSCORES and a LIMIT only the first member.
  ZRANGEBYSCORE = function(key, from, to, with_scores)
    refresh(key)
    local set, found = world.sets[key], {}
    if not set then return found end
    local low, is_after = bound_of(from)
    local high, is_below = bound_of(to)
    local place = is_after and place_of(set, low, '\255\255\255\255\255\255\255') or place_of(set, low, '')
    while set[place] do
      local score = set.scores[set[place]]
      if score > high or is_below and score == high then break end
      found[#found + 1] = set[place]
      if with_scores then return { set[place], string.format('%.0f', score) } end
      place = place + 1
    end
    return found
  end,
}

-- Of '<I7I1' and the like: little-endian integers of so many bytes each. Each format is compiled once.
local function layout_of(format)
  local names, packed, read, size = {}, {}, {}, 0
  for width in string.gmatch(format, 'I(%d)') do
    local name, parts = 'v' .. #names + 1, {}
    for digit = 0, width - 1 do
      local factor = string.format('%.0f', 256 ^ digit)
      packed[#packed + 1] = 'floor(' .. name .. ' / ' .. factor .. ') % 256'
      parts[#parts + 1] = 'b' .. size + digit + 1 .. ' * ' .. factor
    end
    names[#names + 1], read[#read + 1], size = name, table.concat(parts, ' + '), size + width
  end
  local bytes = {}
  for place = 1, size do bytes[place] = 'b' .. place end
  local text = 'local char, byte, floor = string.char, string.byte, math.floor\n'
    .. 'return function(' .. table.concat(names, ', ') .. ')\n'
    .. '  return char(' .. table.concat(packed, ', ') .. ')\nend,\n'
    .. 'function(raw, at)\n  at = at or 1\n'
    .. '  local ' .. table.concat(bytes, ', ') .. ' = byte(raw, at, at + ' .. size - 1 .. ')\n'
    .. '  return ' .. table.concat(read, ', ') .. ', at + ' .. size .. '\nend'
  return loadstring(text)()
end

local packers, unpackers = {}, {}
local function compile(format) packers[format], unpackers[format] = layout_of(format) end

_G.struct = {
  pack = function(format, ...)
    if not packers[format] then compile(format) end
    return packers[format](...)
  end,
  unpack = function(format, raw, at)
    if not unpackers[format] then compile(format) end
    return unpackers[format](raw, at)
  end,
}

-- Only of what engine/arguments.py writes: a list of numbers and of words without escapes.
_G.cjson = {
  decode = function(text)
    local list, at = {}, 2
    while at < #text do
      local closing
      if string.byte(text, at) == 34 then
        closing = string.find(text, '"', at + 1, true) + 1
        list[#list + 1] = string.sub(text, at + 1, closing - 2)
      else
        closing = string.find(text, ',', at, true) or #text
        list[#list + 1] = tonumber(string.sub(text, at, closing - 1))
      end
      at = closing + 1
    end
    return list
  end,
}

-- Functions of scripts: of a world, now, up to eight more arguments, and the keys.
local functions = {}

local function call(command, ...) return commands[command](...) end

_G.redis = {
  call = call,
  pcall = call,
  register_function = function(name, run)
    functions[name] = function(chosen, instant, second, third, fourth, fifth, sixth, seventh, eighth, ninth, ...)
      enter(chosen, instant)
      return unpack(run({ ... }, { instant, second, third, fourth, fifth, sixth, seventh, eighth, ninth }))
    end
  end,
}

-- Load a library of one function, and return the function.
local function load(library, name)
  assert(loadstring(library, '=' .. name))()
  return functions[name]
end

-- What lies beside a bucket, behind its name: a sorted set, and a string.
local HOLDS, LINE = ':holds', ':line'

local function forget(key)
  drop(key .. HOLDS)
  drop(key .. LINE)
  return drop(key)
end

local function clear(chosen, key)
  world = chosen
  return forget(key)
end

local function names(chosen, prefix)
  local found = {}
  for key in pairs(chosen.values) do
    local is_line = string.sub(key, -#LINE) == LINE
    local name = is_line and string.sub(key, 1, -#LINE - 1) or key -- which may have a line alone
    if string.sub(name, 1, #prefix) == prefix and not (is_line and chosen.values[name]) then
      found[#found + 1] = name
    end
  end
  return found
end

-- A bucket as one text, with what lies beside it, and when it expires; false without a bucket.
local function text_of(key)
  local values, expiries, holds = world.values, world.expiries, world.sets[key .. HOLDS]
  local value, line = values[key], values[key .. LINE]
  if not value and not line then return false, 0 end
  local expiry = expiries[key] or expiries[key .. LINE]
  if not line and not holds then return 'v' .. value, expiry end
  local parts = {}
  local list = { value and 'v' or '', value or '', line or '', string.format('%.0f', expiries[key .. LINE] or 0) }
  for _, member in ipairs(holds or {}) do
    list[#list + 1] = string.format('%.0f', holds.scores[member])
    list[#list + 1] = member
  end
  for place, text in ipairs(list) do parts[place] = #text .. ':' .. text end
  return 'b' .. table.concat(parts), expiry
end

-- An error if the text is not one of text_of's.
local function restore(key, text, expiry)
  local kind = string.sub(text, 1, 1)
  if kind == 'v' then return set(key, string.sub(text, 2), expiry) end
  local list, at = {}, 2
  while at <= #text do
    local _, ending, size = string.find(text, '^(%d+):', at)
    at = ending + size + 1
    list[#list + 1] = string.sub(text, ending + 1, at - 1)
  end
  assert(kind == 'b' and #list >= 4 and at == #text + 1)
  if list[1] == 'v' then set(key, list[2], expiry) end
  if list[3] ~= '' then set(key .. LINE, list[3], tonumber(list[4])) end
  for place = 5, #list, 2 do commands.ZADD(key .. HOLDS, tonumber(list[place]), list[place + 1]) end
  world.expiries[key .. HOLDS] = expiry
end

-- Take buckets out of the world, of these names.
local function take_out(chosen, ...)
  world = chosen
  local taken = {}
  for place = 1, select('#', ...) do
    local key = select(place, ...)
    taken[#taken + 1], taken[#taken + 2] = text_of(key)
    forget(key)
  end
  return unpack(taken)
end

-- Put buckets back: of each its name, its text, and when it expires.
local function put_back(chosen, ...)
  world = chosen
  for place = 1, select('#', ...), 3 do restore(select(place, ...)) end
end

return {
  new_world = new_world,
  load = load,
  clear = clear,
  names = names,
  take_out = take_out,
  put_back = put_back,
}
