-- Record a checkpointed partial sum and remove the elements it was made of: from here on they are in
-- its manifest, and before they are on the taken list; never in both, never in neither.
-- The incarnation is the taken list's only writer, so what it has looked at are its first elements. A
-- second call of the same (a command sent again) finds its own nonce.
-- KEYS 1 taken   2 owner   3 partial
-- ARGV 1 token   2 elements looked at   3.. field value ... (the nonce first)
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[3], ARGV[3]) == ARGV[4] then return 1 end
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], unpack(ARGV, 3))
redis.call('LTRIM', KEYS[1], ARGV[2], -1)
return 1
