-- An aggregator incarnation takes ownership of its taken list, and all that other incarnations of the run
-- hold comes back to the results list: their fence is void, they can commit nothing.
-- Its own fence and later ones are in use only if the control server, which counts them, has lost its last
-- writes: their former owners work for rounds that it does not know.
-- KEYS 1 results   2 owner   3.. taken, owner of each other incarnation and of itself
-- ARGV 1 token   2 lifetime, ms   3 fence   4 fence of the first of the others
-- Returns the highest fence, from its own on, that another incarnation is known to have used; 0: none.
local used = 0
for i = 3, #KEYS, 2 do
  local fence = tonumber(ARGV[4]) + (i - 3) / 2
  local holder = redis.call('GET', KEYS[i + 1])
  if fence >= tonumber(ARGV[3]) and holder ~= ARGV[1] and (holder or redis.call('LLEN', KEYS[i]) > 0) then used = fence end
  -- A write that a full server never refuses: after it, it lets a script go on.
  redis.call('DEL', KEYS[i + 1])
  while redis.call('LLEN', KEYS[i]) > 0 do redis.call('LMOVE', KEYS[i], KEYS[1], 'LEFT', 'RIGHT') end
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return used
