-- Write down how many elements were refused, by whom, with events: nothing to a round that is gone or another's.
-- KEYS 1 round   2 rejected   3 run   4 late   5 events
-- ARGV 1 fence   2 JSON who -> JSON of its count, replaced   3 JSON round -> late updates to be added
--      4 events (JSON list)   5 longest event stream   6 token of the aggregator, as in receipt.lua
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] or redis.call('EXISTS', KEYS[3]) == 0 then return 0 end
if ARGV[6] ~= '' and redis.call('HGET', KEYS[1], 'claimed_by') ~= ARGV[6] then return 0 end
for who, count in pairs(cjson.decode(ARGV[2])) do redis.call('HSET', KEYS[2], who, count) end
for number, count in pairs(cjson.decode(ARGV[3])) do redis.call('HINCRBY', KEYS[4], number, count) end
for _, event in ipairs(cjson.decode(ARGV[4])) do
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[5], '*', 'event', event)
end
return 1
