-- Takes, keeps or gives back seats.
--
-- KEYS[1]  base of the keys: each name's members are a sorted set by the time of their end
-- ARGV     milliseconds, 0 to give them back · of each seat its name, its member, and the limit (-1: none)
-- Returns  of each seat 1 or 0.
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
