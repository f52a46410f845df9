-- Record the evaluation of a version, with an event: repeating it is harmless, it has the same metrics.
-- A control server that has lost its last writes may have another version of this number, or none.
-- KEYS 1 run   2 versions   3 evaluations   4 events
-- ARGV 1 number of the version   2 its digest, or '' for any   3 the evaluation, JSON   4 event, JSON   5 longest event stream
-- Returns 1 when it was written.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[2] ~= '' then
  local version = redis.call('HGET', KEYS[2], ARGV[1])
  if not version or cjson.decode(version).digest ~= ARGV[2] then return 0 end
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'event', ARGV[4])
return 1
