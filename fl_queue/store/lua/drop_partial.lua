-- Remove the record of a partial sum, unless it is another one by now.    KEYS 1 partial    ARGV 1 nonce
if redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
