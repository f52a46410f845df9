-- An aggregator incarnation takes ownership of its taken list, and all that earlier incarnations
-- of the run hold comes back to the results list: their fence is void, they can commit nothing.
-- KEYS 1 results   2 owner   3.. taken, owner of each earlier incarnation
-- ARGV 1 token   2 lifetime, ms
-- A write that a full server never refuses: after it, it lets a script go on.
redis.call('DEL', KEYS[2])
for i = 3, #KEYS, 2 do
  redis.call('DEL', KEYS[i + 1])
  while redis.call('LLEN', KEYS[i]) > 0 do redis.call('LMOVE', KEYS[i], KEYS[1], 'LEFT', 'RIGHT') end
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
