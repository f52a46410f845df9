-- Run write commands, if a key exists: nothing is written to a run or round that is gone.
-- KEYS 1 the guard   2.. the keys written    ARGV 1 the commands: JSON list of lists
-- Returns 1 when they were run.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for _, command in ipairs(cjson.decode(ARGV[1])) do redis.call(unpack(command)) end
return 1
