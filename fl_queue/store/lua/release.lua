-- Give a lease back, if it is ours.
-- KEYS 1 the lease   2 zset of clients (optional)     ARGV 1 token   2 member of the zset ('' for none)
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[2], ARGV[2]) end
return 1
