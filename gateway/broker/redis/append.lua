-- Appends batches to the log, atomically. Without batches it only creates the log where it is missing, and
-- advances it to the last id that the caller knows.
--
-- KEYS[1]  hash of the log: head (the last id) and start (the log is complete after this id)
-- ARGV     prefix of all other keys (they share KEYS[1]'s hash tag) · the caller's clock (unix ms)
--          · the last id that the caller knows · PUBLISH or SPUBLISH
--          · batches (msgpack, which has no binary type here: a payload is its length) · all payloads
--          The caller defines KEYS_KEPT (deduplication keys per generation) and CHANNEL_KEPT (milliseconds
--          that the last id of an idle channel outlives its events) in front of the script.
-- Returns  head, start, and for each batch the number of duplicates and all ids; or FENCED for a stale
--          fencing token; or REUSED if a key was used with another fingerprint before.
--
-- Keys: h:<channel> stream of events, each with the id before it in its channel (prev);
--       l:<channel> "<last id> <maximum age>", which outlives the stream and so shows that one is missing;
--       keys, keys:old two generations (of KEYS_KEPT) of deduplication keys, with a fingerprint in a field
--       of its own; cursors (offsets); tokens (of leases).
local log, base = KEYS[1], ARGV[1]
local now, publish = tonumber(ARGV[2]), ARGV[4]
local AHEAD = 60000           -- milliseconds that a node's clock may be ahead of the server's

local function parse(id)
  local ms, seq = string.match(id or '', '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function format(ms, seq)
  return string.format('%.0f-%.0f', ms, seq)
end

local function is_less(ms, seq, other_ms, other_seq)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

-- A node with a wrong clock must not move the ids of all nodes into the future.
local time = redis.call('TIME')
now = math.min(now, time[1] * 1000 + AHEAD)

local state = redis.call('HMGET', log, 'head', 'start')
local ms, seq = parse(state[1])
local start = state[2]
local known_ms, known_seq = parse(ARGV[3])
if not ms or is_less(ms, seq, known_ms, known_seq) then
  -- New, flushed, or a failover lost events that nodes received: everything older is incomplete.
  if not ms then ms, seq = now, 0 end
  if is_less(ms, seq, known_ms, known_seq) then ms, seq = known_ms, known_seq end
  start = format(ms, seq)
  redis.call('HSET', log, 'head', start, 'start', start)
end

local answer = {format(ms, seq), start}
if ARGV[5] == '' then return answer end

local before = answer[1]
local channels, rows, payloads = {}, {}, {}
local keys_added = false
local position = 1

local function channel_of(name)
  local channel = channels[name]
  if not channel then
    local last = redis.pcall('GET', base .. 'l:' .. name)
    local prev, age = string.match(type(last) == 'string' and last or '', '^(%S+) (%S+)$')
    if not prev then
      -- Not written to since the log began, or so long ago that its last id expired as well.
      prev = start
      local start_ms = parse(start)
      if start_ms < now - CHANNEL_KEPT then prev = format(now - CHANNEL_KEPT, 0) end
    end
    channel = {prev = prev, old_age = age}
    channels[name] = channel
  end
  return channel
end

local function store(name, id, payload, draft, channel)
  local key = base .. 'h:' .. name
  local add = {'XADD', key, 'MAXLEN', '=', draft[6], id, 'prev', channel.prev, 'payload', payload,
    'timestamp', string.format('%.0f', draft[3]), 'type', draft[4] or ''}
  local reply = redis.pcall(unpack(add))
  if type(reply) == 'table' and reply.err then
    -- Another type, or the stream of a former log: the chain of prev shows the gap.
    if not (string.find(reply.err, 'WRONGTYPE') or string.find(reply.err, 'equal or smaller')) then
      error(reply)
    end
    redis.call('UNLINK', key)
    redis.call(unpack(add))
  end
  channel.prev, channel.age = id, draft[7]
end

local function seen(field)
  return redis.call('HGET', base .. 'keys', field) or redis.call('HGET', base .. 'keys:old', field)
end

local function field_of(name, key)
  return name .. '\0' .. key
end

local function fingerprint_of(field)
  return field .. '\0'
end

local function is_other(draft)
  local key, fingerprint = draft[5], draft[8]
  if not (key and fingerprint) then return false end
  local first = seen(fingerprint_of(field_of(draft[1], key)))
  return first and first ~= fingerprint
end

local function append(draft)
  local name, key = draft[1], draft[5]
  local payload = string.sub(ARGV[6], position, position + draft[2] - 1)
  position = position + draft[2]
  if key then
    local first = seen(field_of(name, key))
    if first then return first, 1 end
  end
  if now > ms then ms, seq = now, 0 else seq = seq + 1 end
  local id = format(ms, seq)
  local is_kept = draft[6] > 0
  if is_kept then store(name, id, payload, draft, channel_of(name)) end
  if key then
    local field = field_of(name, key)
    redis.call('HSET', base .. 'keys', field, id)
    if draft[8] then redis.call('HSET', base .. 'keys', fingerprint_of(field), draft[8]) end
    keys_added = true
  end
  rows[#rows + 1] = {id, name, draft[3], draft[4] or cjson.null, is_kept, draft[2]}
  payloads[#payloads + 1] = payload
  return id, 0
end

local function is_reused(drafts)
  for _, draft in ipairs(drafts) do
    if is_other(draft) then return true end
  end
  return false
end

for number, batch in ipairs(cmsgpack.unpack(ARGV[5])) do
  local drafts, source, place_in_source, lease, token = unpack(batch, 1, 5)
  local refusal
  if lease and redis.call('HGET', base .. 'tokens', lease) ~= token then
    refusal = 'FENCED'
  elseif is_reused(drafts) then
    refusal = 'REUSED'
  end
  if refusal then
    answer[number + 2] = refusal
    for _, draft in ipairs(drafts) do position = position + draft[2] end
  else
    if place_in_source == '' then
      redis.call('HDEL', base .. 'cursors', source)
    elseif source then
      redis.call('HSET', base .. 'cursors', source, place_in_source)
    end
    local ids, duplicates = {}, 0
    for place, draft in ipairs(drafts) do
      local id, duplicate = append(draft)
      ids[place] = id
      duplicates = duplicates + duplicate
    end
    answer[number + 2] = duplicates .. ' ' .. table.concat(ids, ' ')
  end
end

for name, channel in pairs(channels) do
  local key, last = base .. 'h:' .. name, base .. 'l:' .. name
  if channel.age then
    redis.call('XTRIM', key, 'MINID', '=', format(math.max(0, now - channel.age + 1), 0))
    redis.call('PEXPIRE', key, channel.age + 1000)
    redis.call('SET', last, channel.prev .. ' ' .. string.format('%.0f', channel.age), 'PX', channel.age + CHANNEL_KEPT)
  else
    if channel.old_age ~= '-' then redis.call('PERSIST', key) end
    redis.call('SET', last, channel.prev .. ' -')
  end
end

if keys_added and redis.call('HLEN', base .. 'keys') >= KEYS_KEPT then
  redis.call('UNLINK', base .. 'keys:old')
  redis.call('RENAME', base .. 'keys', base .. 'keys:old')
end

if #rows > 0 then
  answer[1] = format(ms, seq)
  redis.call('HSET', log, 'head', answer[1])
  local header = cjson.encode({before, rows})
  redis.call(publish, 'sse-gateway:' .. base .. 'live', header .. '\n' .. table.concat(payloads))
end
return answer
