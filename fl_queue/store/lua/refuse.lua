-- Remove from an incarnation's taken list elements that it has refused; the others stay, in their order.
-- A second call of the same (a command sent again) finds another length and does nothing.
-- KEYS 1 taken   2 owner
-- ARGV 1 token   2 length of the list   3 a text that is no element   4.. places of the elements, from 0
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if redis.call('LLEN', KEYS[1]) ~= tonumber(ARGV[2]) then return 1 end
-- A write that a full server never refuses: after it, it lets a script go on.
redis.call('PERSIST', KEYS[1])
for i = 4, #ARGV do redis.call('LSET', KEYS[1], ARGV[i], ARGV[3]) end
redis.call('LREM', KEYS[1], 3 - #ARGV, ARGV[3])
return 1
