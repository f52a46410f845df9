-- Move the elements of taken lists without a living owner back to the results list.
-- KEYS 1 results   2.. taken, owner of each incarnation to look at
-- Returns how many elements came back.
-- A write that a full server never refuses: after it, it lets a script go on.
redis.call('PERSIST', KEYS[1])
local moved = 0
for i = 2, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i + 1]) == 0 then
    while redis.call('LLEN', KEYS[i]) > 0 do
      redis.call('LMOVE', KEYS[i], KEYS[1], 'LEFT', 'RIGHT')
      moved = moved + 1
    end
  end
end
return moved
