-- The only place where a round's outcome is decided: commit, abandon, cancel, or end of an
-- evaluation or initialisation. Everything before it can be repeated, everything after it is cleaning up.
-- KEYS 1 run   2 round   3 updates   4 history   5 events   6 versions   7 manifest   8 accepted
-- ARGV 1 round number   2 fence   3 token of this call   4 outcome   5 reason
--      6 version and 7 its digest ('' for none)   8 history record ('' for none)
--      9 receipts: JSON client -> receipt   10 event (JSON)   11 longest event stream
--      12 abandoned rounds in a row at which the run fails   13 manifest ('' for none)
--      14 digest of the version's encoded body ('' for none)
--      16 clients that keep something: JSON client -> JSON round and digest of its accepted update ('{}' for none)
--      17 token of the incarnation ('' for none): a control server that has lost its last writes counts to the
--      same fence again, and a sum that was made for another round of this number must not be committed
--      15 state the strategy keeps with the version: JSON name -> digest ('{}' for none)
--      18 the operator's signature of the version ('' for none), base64
--      19 1: what the strategy keeps is zero again with this version, at the server and at all clients
-- Returns ok | same (this very call came before) | why it was refused.
if redis.call('HGET', KEYS[2], 'end_token') == ARGV[3] then return 'same' end
if redis.call('HGET', KEYS[1], 'state') ~= 'training' then return 'the run is not training' end
if redis.call('HGET', KEYS[1], 'round') ~= ARGV[1] then return 'the run is at another round' end
if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 'the round has ended' end
if (redis.call('HGET', KEYS[2], 'fence') or '0') ~= ARGV[2] then return 'another aggregator owns the round' end
if ARGV[17] ~= '' and redis.call('HGET', KEYS[2], 'claimed_by') ~= ARGV[17] then return 'another aggregator owns the round' end
local time = redis.call('TIME')
local now = string.format('%.3f', tonumber(time[1]) + tonumber(time[2]) / 1000000)
redis.call('HSET', KEYS[2], 'state', ARGV[4], 'reason', ARGV[5], 'end_token', ARGV[3], 'ended_at', now)
local receipts = cjson.decode(ARGV[9])
for client, receipt in pairs(receipts) do
  redis.call('HSET', KEYS[3], client, receipt)
end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[1], 'version', ARGV[6], 'digest', ARGV[7], 'download', ARGV[14], 'server_state', ARGV[15],
    'abandoned', 0)
  if ARGV[19] == '1' then redis.call('HSET', KEYS[1], 'state_since', ARGV[1]) end
  local download = ''
  if ARGV[14] ~= '' then download = string.format('"download":"%s",', ARGV[14]) end
  local kept = ''
  if ARGV[15] ~= '{}' then
    kept = ',"server_state":' .. ARGV[15]
    local population = redis.call('HGET', KEYS[2], 'population')
    if population then kept = kept .. ',"population":' .. population end
  end
  if ARGV[18] ~= '' then kept = kept .. string.format(',"signature":"%s"', ARGV[18]) end
  redis.call('HSET', KEYS[6], ARGV[6], string.format('{"digest":"%s",%s"round":%s%s}', ARGV[7], download, ARGV[1], kept))
  redis.call('HSET', KEYS[2], 'version', ARGV[6], 'digest', ARGV[7])
  for client, update in pairs(cjson.decode(ARGV[16])) do
    redis.call('HSET', KEYS[8], client, update)
  end
end
if ARGV[13] ~= '' then redis.call('SET', KEYS[7], ARGV[13]) end
if ARGV[8] ~= '' then redis.call('RPUSH', KEYS[4], ARGV[8]) end
redis.call('HSET', KEYS[1], 'waited_s', '0')
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[11], '*', 'event', ARGV[10])
if ARGV[4] == 'evaluated' then redis.call('HSET', KEYS[1], 'evaluated_version', redis.call('HGET', KEYS[1], 'version')) end
if ARGV[4] == 'abandoned' then
  local failed = redis.call('HINCRBY', KEYS[1], 'abandoned', 1)
  if failed >= tonumber(ARGV[12]) then
    redis.call('HSET', KEYS[1], 'state', 'failed', 'reason', ARGV[5])
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[11], '*', 'event',
      cjson.encode({event = 'run_failed', reason = ARGV[5]}))
  end
end
if ARGV[4] == 'cancelled' then
  redis.call('HSET', KEYS[1], 'state', 'cancelled', 'reason', ARGV[5])
end
return 'ok'
