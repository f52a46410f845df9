-- Move an element of a list to its front, if it is there.    KEYS 1 the list    ARGV 1 the element
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
