-- Acquires, renews or releases a lease.
--
-- KEYS[1]  hash of the latest token of each lease
-- ARGV     prefix of all other keys · name · owner · milliseconds, 0 to release it
-- Returns  the fencing token; or false while another owner holds the lease.
local tokens, name, owner = KEYS[1], ARGV[2], ARGV[3]
local key, milliseconds = ARGV[1] .. 'lease:' .. name, tonumber(ARGV[4])
local holder = redis.call('GET', key)

if milliseconds == 0 then
  if holder == owner then redis.call('DEL', key) end
  return false
end
if holder == owner then
  redis.call('PEXPIRE', key, milliseconds)
  local token = redis.call('HGET', tokens, name)
  if token then return token end  -- otherwise this server lost it
elseif holder then
  return false
end

-- From the clock and the last token: tokens grow even if this server lost all of them.
local time = redis.call('TIME')
local last = tonumber(redis.call('HGET', tokens, name) or 0)
local token = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', key, owner, 'PX', milliseconds)
redis.call('HSET', tokens, name, token)
return token
