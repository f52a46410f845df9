-- Record what became of updates, all at once. A client's first receipt stands under its id; a later one of
-- another status or token under <client>:<status>, once. `accepted` is never overwritten, and nothing is
-- written to a round that does not exist.
-- KEYS 1 round   2 updates   3 events
-- ARGV 1 receipts: JSON client -> receipt   2 events (JSON list), written when a receipt is news
--      3 longest event stream   4 fence, or '' for an ended round   5 token of the aggregator, or '' for any
-- A control server that has lost its last writes may have a round open that its writer takes for ended, or count
-- to the writer's fence again: the client of such a receipt would not be asked any more.
-- Returns how many receipts were written.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[4] == '' and redis.call('HGET', KEYS[1], 'state') == 'open' then return 0 end
if ARGV[4] ~= '' and redis.call('HGET', KEYS[1], 'fence') ~= ARGV[4] then return 0 end
if ARGV[5] ~= '' and redis.call('HGET', KEYS[1], 'claimed_by') ~= ARGV[5] then return 0 end

local function field_of(client, text)
  -- What is in a client's name and not by it takes no place of the client's own.
  if cjson.decode(text)['status'] == 'forged' then
    local apart = client .. ':forged'
    return redis.call('HEXISTS', KEYS[2], apart) == 0 and apart or nil
  end
  local first = redis.call('HGET', KEYS[2], client)
  if not first then return client end
  local receipt, known = cjson.decode(text), cjson.decode(first)
  if known['token'] == receipt['token'] and (known['status'] == receipt['status'] or receipt['status'] == 'late') then
    return nil
  end
  -- A valid update after an invalid one of the same client stands in the first place.
  if receipt['status'] == 'received' and known['status'] ~= 'accepted' then return client end
  local further = client .. ':' .. receipt['status']
  if redis.call('HEXISTS', KEYS[2], further) == 1 then return nil end
  return further
end

local written = 0
for client, text in pairs(cjson.decode(ARGV[1])) do
  local field = field_of(client, text)
  if field then
    redis.call('HSET', KEYS[2], field, text)
    written = written + 1
  end
end
if written > 0 then
  for _, event in ipairs(cjson.decode(ARGV[2])) do
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'event', event)
  end
end
return written
