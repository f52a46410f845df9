-- Take or extend a lease: a hash with the holder's token that expires.
-- KEYS 1 the lease   2 zset of clients (optional)
-- ARGV 1 token   2 lifetime, ms   3 member of the zset ('' for none)   4.. field value ... of the holder
-- Returns 1 when held, 0 when somebody else holds it.
local holder = redis.call('HGET', KEYS[1], 'token')
if holder and holder ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], string.format('%.3f', tonumber(time[1]) + tonumber(time[2]) / 1000000), ARGV[3])
end
return 1
