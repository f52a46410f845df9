-- Count time: add min(now - last tick, longest step) of this server's clock to a counter, so that
-- outages, pauses and clock jumps count as nothing. Any number of callers may tick.
-- KEYS 1 a round's hash (state open) or a run's hash (state training)
-- ARGV 1 the counter's field   2 longest step, seconds
-- Returns the counter, or nil when the hash is gone or no longer counting.
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'open' and state ~= 'training' then return false end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local last = tonumber(redis.call('HGET', KEYS[1], 'ticked_at')) or now
local step = math.max(0, math.min(now - last, tonumber(ARGV[2])))
local total = (tonumber(redis.call('HGET', KEYS[1], ARGV[1])) or 0) + step
local text = string.format('%.3f', total)
redis.call('HSET', KEYS[1], 'ticked_at', string.format('%.6f', now), ARGV[1], text)
return text
