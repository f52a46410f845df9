-- Extend an incarnation's lease.    KEYS 1 owner    ARGV 1 token   2 lifetime, ms
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
