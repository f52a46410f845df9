-- Put a new job in place of another one, if that is still the newest of its field. Other fields of the hash
-- may change meanwhile, and the call may be repeated after a lost reply.
-- KEYS 1 the hash of tickets   2.. the keys that the commands write
-- ARGV 1 the field   2 id of the job to be replaced   3 id of the new one   4 the new ticket, JSON
--      5.. the commands that publish it: for each the number of its words, then the words
-- Returns 1 when the new job is the newest, 0 when another one is.
local ticket = redis.call('HGET', KEYS[1], ARGV[1])
if not ticket then return 0 end
local newest = cjson.decode(ticket).job
if newest == ARGV[3] then return 1 end
if newest ~= ARGV[2] then return 0 end
local at = 5
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
-- Last, so that after a failed command (a key of a wrong type) the whole script is tried again.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return 1
