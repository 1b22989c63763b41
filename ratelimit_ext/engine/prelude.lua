-- The head of every script: exact arithmetic beyond doubles, and the table of strategies, which each
-- fragment extends.
--
-- KEYS     none
-- ARGV     none
-- returns  nothing

local strategies = {}

-- A function finds locals faster than globals, which it has from its first call on.
local function globals() return math, string, struct, tonumber, unpack end
local math, string, struct, tonumber, unpack

-- The words of all charges come as one JSON list: a client packs one long argument much faster than
-- thirty short ones. It is the same for all callers of the same limits.
local words

-- The bucket that is decided now, and the entry of `strategies` that decides it.
local bucket, current

-- Under which id the call reserves its estimates, and its lease in microseconds (0: no hold). For how
-- long it has waited, in microseconds, if it may wait, and whether its estimates count as spent. What it
-- reserves, in one unit for all calls (0: unknown), by which members of a group have their turns.
local hold, lease, waited, keeps, price

-- What lies beside buckets: by bucket the commands that store it, and a function that runs them, right
-- after the bucket is stored, with the bucket's name and its expiry in milliseconds. Most scripts have
-- no such function.
local pending, store_pending = {}, nil

-- A library of functions keeps its locals between calls: lists that came before need no decoding. Of
-- the numbers, which differ more between calls, only those of the last call are kept, and their list.
local decoded, lists, numbers, list_of_numbers = {}, 0, nil, nil
local MOST_LISTS = 256

local function begin(list)
  if not math then math, string, struct, tonumber, unpack = globals() end
  words = decoded[list]
  if not words then
    if lists >= MOST_LISTS then decoded, lists = {}, 0 end
    words = cjson.decode(list)
    decoded[list], lists = words, lists + 1
  end
  if next(pending) then pending = {} end
end

-- What a correction can raise a bucket's usage to (MOST_USED in strategies/strategy.py).
local MOST_USED = 1125899906842624

-- Nothing is kept for longer, in microseconds: 142 years (LONGEST_LIFETIME_US in strategies/strategy.py).
local LONGEST_LIFETIME = 4503599627370496

-- The quotient and the remainder of a * b / m, exactly, for whole a < 2^53, b < 2^53, m <= 2^48
-- and a quotient below 2^53. Where the product leaves 2^53 it is built digit by digit in base 16:
-- remainder * 16 + digit * b stays below 2^53.
local function multiply_divide(a, b, m)
  local product = a * b
  if product < 9007199254740992 then
    local quotient = math.floor(product / m)
    return quotient, product - quotient * m
  end
  local whole = math.floor(b / m)
  local rest = b - whole * m
  local quotient, remainder = 0, 0
  for exponent = 13, 0, -1 do
    local digit = math.floor(a / 16 ^ exponent) % 16
    local sum = remainder * 16 + digit * rest
    local carried = math.floor(sum / m)
    quotient, remainder = quotient * 16 + carried, sum - carried * m
  end
  return a * whole + quotient, remainder
end

local function present_instant(argument)
  if argument ~= '' then return tonumber(argument) end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Store a value for its lifetime in microseconds; false if the server is full. With an offset it
-- replaces a part of what is stored, which expires when it did. A server counts from the millisecond
-- that has begun, and may remove a key as soon as its last one begins: one more makes up for it.
local function try_store(key, value, lifetime, offset)
  if offset then return type(redis.pcall('SETRANGE', key, offset, value)) == 'number' end
  local expiry = math.ceil(math.min(lifetime, LONGEST_LIFETIME) / 1000) + 1
  if redis.pcall('SET', key, value, 'PX', expiry).err then return false end
  if store_pending then store_pending(key, expiry) end
  return true
end

-- Store a value for its lifetime in microseconds, also on a full server (maxmemory); drop it if the
-- lifetime is over. Returns what is stored, or false.
local function store(key, value, lifetime, offset)
  if lifetime <= 0 then
    redis.call('DEL', key)
    if store_pending then store_pending(key, 0) end
    return false
  end
  if not try_store(key, value, lifetime, offset) then
    -- A full server refuses a script's first write if that takes memory. These take none, and after
    -- them every write is allowed. Every other error is raised here.
    if offset then redis.call('PEXPIRE', key, math.ceil(lifetime / 1000) + 1) else redis.call('DEL', key) end
    try_store(key, value, lifetime, offset)
  end
  return value
end
