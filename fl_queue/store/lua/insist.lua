-- Store a string even on a full server: what a run cannot go on without, and what will free memory there.
-- KEYS 1 the key    ARGV 1 the value   2 lifetime, s; 0: for ever
redis.call('PERSIST', KEYS[1])  -- Never refused; after a write a script may go on.
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[2] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
return 1
