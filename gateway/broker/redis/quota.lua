-- Acquires, renews or releases quota slots.
--
-- KEYS[1]  prefix of the keys: each quota is a sorted set of members by expiry (unix ms)
-- ARGV     milliseconds, 0 to release · then for each slot: quota · member · limit (-1: none)
-- Returns  for each slot 1 if it was granted, otherwise 0.
local milliseconds = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}

for place = 2, #ARGV, 3 do
  local key, member, limit = KEYS[1] .. ':' .. ARGV[place], ARGV[place + 1], tonumber(ARGV[place + 2])
  local had = 1
  if milliseconds == 0 then
    redis.call('ZREM', key, member)
  else
    if limit >= 0 and not redis.call('ZSCORE', key, member) then
      redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
      if redis.call('ZCARD', key) >= limit then had = 0 end
    end
    if had == 1 then
      redis.call('ZADD', key, now + milliseconds, member)
      redis.call('PEXPIRE', key, milliseconds)
    end
  end
  answer[#answer + 1] = had
end
return answer
