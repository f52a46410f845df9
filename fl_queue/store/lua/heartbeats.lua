-- Record the heartbeats of clients. Only the operator's side calls this, the healer once a second. A longer
-- pause between calls, or a step back, is an outage or a jump of this server's clock: the living clients are
-- then unknown until each has had the time to extend its lease again (settling_s, counted down by the calls).
-- KEYS 1 zset of clients   2 clock
-- ARGV 1 longest silence, s   2 time to settle, s   3 JSON client -> seconds since its heartbeat   4.. clients that have left
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local clock = redis.call('HMGET', KEYS[2], 'ticked_at', 'settling_s')
local step = now - tonumber(clock[1] or now)
local settling = math.max(0, tonumber(clock[2] or 0) - math.max(step, 0))
if step > tonumber(ARGV[1]) or step < -1 then settling = tonumber(ARGV[2]) end
redis.call('HSET', KEYS[2], 'ticked_at', string.format('%.3f', now), 'settling_s', string.format('%.3f', settling))
for client, age in pairs(cjson.decode(ARGV[3])) do
  redis.call('ZADD', KEYS[1], string.format('%.3f', now - age), client)
end
for i = 4, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
return 1
