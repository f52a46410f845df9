-- Take or extend a lease: a hash with the holder's token that expires.
-- Every worker and the healer call this every one or two seconds. A longer silence, or a step back,
-- is an outage or a jump of this server's clock: who is alive is then not known until everybody
-- has had the time to be heard again (settling_s, counted down by the calls).
-- KEYS 1 the lease   2 zset of clients   3 clock
-- ARGV 1 token   2 lifetime, ms   3 member of the zset ('' for none)   4 longest silence, s
--      5 time to settle, s   6.. field value ... of the holder
-- Returns 1 when held, 0 when somebody else holds it.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local clock = redis.call('HMGET', KEYS[3], 'ticked_at', 'settling_s')
local step = now - tonumber(clock[1] or now)
local settling = math.max(0, tonumber(clock[2] or 0) - math.max(step, 0))
if step > tonumber(ARGV[4]) or step < -1 then settling = tonumber(ARGV[5]) end
redis.call('HSET', KEYS[3], 'ticked_at', string.format('%.3f', now), 'settling_s', string.format('%.3f', settling))
local holder = redis.call('HGET', KEYS[1], 'token')
if holder and holder ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[2], string.format('%.3f', now), ARGV[3]) end
return 1
