-- Identity of a server's process and of its content: changes when either is another one.
-- KEYS 1 the mark    ARGV 1 a random mark, for a server without one
local mark = redis.call('GET', KEYS[1])
if not mark then
  mark = ARGV[1]
  redis.call('SET', KEYS[1], mark)
end
return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') .. ':' .. mark
