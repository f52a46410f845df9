-- Remove from an incarnation's taken list the elements it has looked at, whose rounds have ended.
-- The incarnation is the list's only writer, so they are its first ones. A second call of the same
-- (a command sent again) finds another length and does nothing.
-- KEYS 1 taken   2 owner
-- ARGV 1 token   2 elements to remove   3 length of the list
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[3]) then return 0 end
redis.call('LTRIM', KEYS[1], ARGV[2], -1)
return 1
