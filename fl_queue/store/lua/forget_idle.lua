-- Remove an empty queue from the set of all queues; the next publication adds it again.
-- KEYS 1 the set of queues   2 the queue   3.. its other keys
-- Returns 1 when it was removed.
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end
end
return redis.call('SREM', KEYS[1], KEYS[2])
