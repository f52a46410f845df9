-- An aggregator job starts on a round: give it the next fence, so that every earlier incarnation
-- is refused from now on. Receipts go: their elements come back and are looked at again.
-- KEYS 1 run   2 round   3 updates   4 jobs
-- ARGV 1 round number   2 id of the claiming job
-- Returns the fence, or 0 when the round is not there to be claimed by this job.
if redis.call('HGET', KEYS[1], 'state') ~= 'training' then return 0 end
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 0 end
local job = redis.call('HGET', KEYS[4], 'aggregator')
if not job or cjson.decode(job)['job'] ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[3])
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[2], 'fence', fence)
return fence
