-- Updates that do not lie on this server any more make room for others.
-- KEYS who was admitted    ARGV for each, with which update
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'string' or redis.call('GET', key) == ARGV[i] then redis.call('DEL', key) end
end
return 1
