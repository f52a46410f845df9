-- The only place where a round's outcome is decided: commit, abandon, cancel, or end of an
-- evaluation or initialisation. Everything before it can be repeated, everything after it is cleaning up.
-- KEYS 1 run   2 round   3 updates   4 history   5 events   6 versions   7 manifest   8 accepted
-- ARGV 1 JSON object; all of its values are texts but those with another type in brackets:
--      round, fence       numbers of the round and of the aggregator that ends it
--      call               token of this call: repeating it changes nothing
--      incarnation        token of the aggregator ('' for none): a control server that has lost its last writes
--                         counts to the same fence again, and a sum made for another round of this number must
--                         not be committed
--      outcome, reason    of the round
--      record             history record ('' for none)
--      receipts           [object] client -> receipt
--      event              JSON; max_events [number]: longest event stream
--      max_abandoned      [number] abandoned rounds in a row at which the run fails
--      panel              JSON: the panel of a fit from now on ('' for: as it is); a round that is abandoned with one
--                         does not count to max_abandoned
--      rounds_wanted      the last version that the run may have ('' for: as it is)
--      survivors          of a secure round: digest of those whose updates are in the version ('' for none)
--      version            [object] the new version (absent: none):
--        number, digest   of the version
--        download         digest of its encoded body ('' for none)
--        manifest         of the run ('' for: as it is)
--        server_state     JSON name -> digest: state that the strategy keeps with the version ('{}' for none)
--        accepted         [object] client that keeps a state -> JSON round and digest of its accepted update
--        signature        the operator's, base64 ('' for none)
--        metrics          JSON list of those that the task declares ('' for: as it is)
--        is_last          [boolean] the run completes with it
--        begins_anew      [boolean] the strategy's state is zero again with this version, here and at all clients
-- Returns ok | same (this very call came before) | why it was refused.
local ending = cjson.decode(ARGV[1])
local version = ending.version
if redis.call('HGET', KEYS[2], 'end_token') == ending.call then return 'same' end
if redis.call('HGET', KEYS[1], 'state') ~= 'training' then return 'the run is not training' end
if redis.call('HGET', KEYS[1], 'round') ~= ending.round then return 'the run is at another round' end
if redis.call('HGET', KEYS[2], 'state') ~= 'open' then return 'the round has ended' end
if (redis.call('HGET', KEYS[2], 'fence') or '0') ~= ending.fence then return 'another aggregator owns the round' end
if ending.incarnation ~= '' and redis.call('HGET', KEYS[2], 'claimed_by') ~= ending.incarnation then
  return 'another aggregator owns the round'
end
if version and (redis.call('HGET', KEYS[2], 'survivors') or '') ~= ending.survivors then
  return 'the updates of other clients were frozen'
end
local time = redis.call('TIME')
local now = string.format('%.3f', tonumber(time[1]) + tonumber(time[2]) / 1000000)
redis.call('HSET', KEYS[2], 'state', ending.outcome, 'reason', ending.reason, 'end_token', ending.call, 'ended_at', now)
for client, receipt in pairs(ending.receipts) do
  redis.call('HSET', KEYS[3], client, receipt)
end
if version then
  redis.call('HSET', KEYS[1], 'version', version.number, 'digest', version.digest, 'download', version.download,
    'server_state', version.server_state, 'abandoned', 0)
  if version.is_last then redis.call('HSET', KEYS[1], 'rounds_wanted', version.number) end
  if version.begins_anew then redis.call('HSET', KEYS[1], 'state_since', ending.round) end
  local download = ''
  if version.download ~= '' then download = string.format('"download":"%s",', version.download) end
  local kept = ''
  if version.server_state ~= '{}' then
    kept = ',"server_state":' .. version.server_state
    local population = redis.call('HGET', KEYS[2], 'population')
    if population then kept = kept .. ',"population":' .. population end
  end
  if version.signature ~= '' then kept = kept .. string.format(',"signature":"%s"', version.signature) end
  redis.call('HSET', KEYS[6], version.number,
    string.format('{"digest":"%s",%s"round":%s%s}', version.digest, download, ending.round, kept))
  redis.call('HSET', KEYS[2], 'version', version.number, 'digest', version.digest)
  for client, update in pairs(version.accepted) do
    redis.call('HSET', KEYS[8], client, update)
  end
  if version.metrics and version.metrics ~= '' then redis.call('HSET', KEYS[1], 'metrics', version.metrics) end
  if version.manifest ~= '' then redis.call('SET', KEYS[7], version.manifest) end
end
if ending.panel ~= '' then redis.call('HSET', KEYS[1], 'panel', ending.panel) end
if ending.rounds_wanted ~= '' then redis.call('HSET', KEYS[1], 'rounds_wanted', ending.rounds_wanted) end
if ending.record ~= '' then redis.call('RPUSH', KEYS[4], ending.record) end
redis.call('HSET', KEYS[1], 'waited_s', '0')
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ending.max_events, '*', 'event', ending.event)
if ending.outcome == 'evaluated' then
  redis.call('HSET', KEYS[1], 'evaluated_version', redis.call('HGET', KEYS[1], 'version'))
end
if ending.outcome == 'abandoned' and ending.panel ~= '' then
  redis.call('HSET', KEYS[1], 'abandoned', 0)
elseif ending.outcome == 'abandoned' then
  local failed = redis.call('HINCRBY', KEYS[1], 'abandoned', 1)
  if failed >= ending.max_abandoned then
    redis.call('HSET', KEYS[1], 'state', 'failed', 'reason', ending.reason)
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', ending.max_events, '*', 'event',
      cjson.encode({event = 'run_failed', reason = ending.reason}))
  end
end
if ending.outcome == 'cancelled' then
  redis.call('HSET', KEYS[1], 'state', 'cancelled', 'reason', ending.reason)
end
return 'ok'
