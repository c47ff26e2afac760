-- Returns the ids of the last events of channels, newest first, without the events (for last=N).
--
-- KEYS[1]  the log's hash, for its hash tag only
-- ARGV     prefix of all keys · maximum number of ids · then for each span: channel · first id (inclusive)
--          · end (exclusive), or '' · maximum number of ids of this span
-- Returns  for each span: its ids in one string, "<last id> <maximum age>" of the channel or '', and 1 if
--          there may be more ids in the span.
local base, room = ARGV[1], tonumber(ARGV[2])
local SMALL, LARGE = 16, 256  -- entries per read: few while their size is unknown
local LARGE_BYTES = 65536     -- bytes of a read above which the next one does not grow

local function ids_of(key, first, before, count)
  local ids, step = {}, SMALL
  local last = before == '' and '+' or '(' .. before
  while #ids < count do
    local asked = math.min(step, count - #ids)
    local rows = redis.pcall('XREVRANGE', key, last, first, 'COUNT', asked)
    if rows.err then return ids, 0 end  -- not a stream: another program's key
    local bytes = 0
    for _, row in ipairs(rows) do
      ids[#ids + 1] = row[1]
      bytes = bytes + #row[2][4]
    end
    if #rows < asked then return ids, 0 end
    last = '(' .. ids[#ids]
    if bytes < LARGE_BYTES then step = math.min(2 * step, LARGE) end
  end
  return ids, 1
end

local answer = {}
for number = 3, #ARGV, 4 do
  local name, first, before, count = unpack(ARGV, number, number + 3)
  local ids, is_cut = ids_of(base .. 'h:' .. name, first, before, math.min(tonumber(count), room))
  room = room - #ids
  local last = redis.pcall('GET', base .. 'l:' .. name)
  answer[#answer + 1] = {table.concat(ids, ' '), type(last) == 'string' and last or '', is_cut}
end
return answer
