-- Move the oldest elements of a list to the end of the owner's, and return them; none if the lease is another owner's.
-- KEYS 1 results   2 taken   3 owner    ARGV 1 most elements   2 bytes from which on no further one is taken   3 token
if redis.call('GET', KEYS[3]) ~= ARGV[3] then return false end
-- A full server refuses LMOVE, though it needs no memory and is what frees some. After a write that is
-- never refused it lets a script go on.
redis.call('PERSIST', KEYS[1])
local found, bytes = {}, 0
while #found < tonumber(ARGV[1]) and bytes < tonumber(ARGV[2]) do
  local element = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not element then break end
  found[#found + 1] = element
  bytes = bytes + #element
end
return found
