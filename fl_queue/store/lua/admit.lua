-- Whether an update may be sent to this server now, so that what lies here unmerged stays below a bound.
-- Permissions expire, as clients die; the server's clock is good enough for that.
-- KEYS 1 zset: <token>:<bytes> -> when it expires
-- ARGV 1 <token>:<bytes>   2 most bytes in all   3 lifetime, s
-- Returns 1 when admitted (also when it was before).
local function bytes(update) return tonumber(string.match(update, ':(%d+)$') or 0) end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local total = 0
  for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do total = total + bytes(other) end
  if total > 0 and total + bytes(ARGV[1]) > tonumber(ARGV[2]) then return 0 end
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), ARGV[1])
return 1
