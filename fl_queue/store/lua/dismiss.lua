-- Updates that do not lie on this server any more make room for others.
-- KEYS 1 who had a turn in the round   2.. who was admitted
-- ARGV 1 lifetime of the first, s; 0: no turn is counted   then for each: client, its update
-- A write that a full server never refuses: after it, it lets a script go on.
redis.call('PERSIST', KEYS[1])
for i = 2, #KEYS do
  local client, update = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'string' or redis.call('GET', KEYS[i]) == update then redis.call('DEL', KEYS[i]) end
  if ARGV[1] ~= '0' then redis.call('HINCRBY', KEYS[1], client, 1) end
end
if ARGV[1] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return 1
