-- Move an element of a list to one of its ends, if it is there.
-- KEYS 1 the list    ARGV 1 the element   2 LPUSH: to its front, RPUSH: to its back
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call(ARGV[2], KEYS[1], ARGV[1])
return 1
