-- An aggregator job starts on a round: give it the next fence, so that every earlier incarnation
-- is refused from now on. Receipts of what was received go: those elements come back and are looked at
-- again. Refused elements are gone for good, and their receipts stay.
-- KEYS 1 run   2 round   3 updates   4 jobs
-- ARGV 1 round number   2 id of the claiming job   3 token of the incarnation   4 the fence is higher than this
-- Returns the fence, or 0 when the round is not there to be claimed by this job.
if redis.call('HGET', KEYS[1], 'state') ~= 'training' then return 0 end
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 0 end
local job = redis.call('HGET', KEYS[4], 'aggregator')
if not job or cjson.decode(job)['job'] ~= ARGV[2] then return 0 end
local receipts = redis.call('HGETALL', KEYS[3])
for i = 1, #receipts, 2 do
  -- Not decoded: there may be a hundred thousand. Our own JSON has no spaces, and quotes in texts escaped.
  if string.find(receipts[i + 1], '"status":"received"', 1, true) then redis.call('HDEL', KEYS[3], receipts[i]) end
end
local fence = math.max(tonumber(redis.call('HGET', KEYS[1], 'fence') or 0), tonumber(ARGV[4])) + 1
redis.call('HSET', KEYS[1], 'fence', fence)
redis.call('HSET', KEYS[2], 'fence', fence, 'claimed_by', ARGV[3])
return fence
