-- Record what became of an update. A client's first receipt stands under its id; a later one of
-- another status or token under <client>:<status>, once. `accepted` is never overwritten, and nothing is
-- written to a round that does not exist.
-- KEYS 1 round   2 updates   3 events
-- ARGV 1 client   2 receipt (JSON)   3 event (JSON)   4 longest event stream   5 fence, or '' for an ended round
-- Returns 1 when something was written.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[5] ~= '' and redis.call('HGET', KEYS[1], 'fence') ~= ARGV[5] then return 0 end
local receipt = cjson.decode(ARGV[2])
local field = ARGV[1]
local first = redis.call('HGET', KEYS[2], field)
if first then
  local known = cjson.decode(first)
  if known['token'] == receipt['token'] and (known['status'] == receipt['status'] or receipt['status'] == 'late') then
    return 0
  end
  -- A valid update after an invalid one of the same client stands in the first place.
  if receipt['status'] ~= 'received' or known['status'] == 'accepted' then
    field = field .. ':' .. receipt['status']
  end
end
if field ~= ARGV[1] and redis.call('HEXISTS', KEYS[2], field) == 1 then return 0 end
redis.call('HSET', KEYS[2], field, ARGV[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[3])
return 1
