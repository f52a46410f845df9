-- Move the oldest element of a list to the end of another one, and return it; nil when there is none.
-- KEYS 1 results   2 taken
-- A full server refuses LMOVE, though it needs no memory and is what frees some. After a write that is
-- never refused it lets a script go on.
redis.call('PERSIST', KEYS[1])
return redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
