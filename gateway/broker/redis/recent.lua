-- Returns ids of the last events of channels, newest first, without the events: what last=N needs to know.
--
-- KEYS[1]  the log's hash, for its hash tag only
-- ARGV     base of all keys · ids to return at the most · then of each span: channel · first id (inclusive)
--          · id that all lie before, or nothing · ids of this span at the most
-- Returns  for each span: its ids in one string, "<last id> <age>" of the channel or nothing, and 1 where
--          there may be more ids in the span.
local base, room = ARGV[1], tonumber(ARGV[2])
local SMALL, LARGE = 16, 256  -- entries that are read at once: few while nothing is known of their size
local LARGE_BYTES = 65536     -- of entries, above which no more are read at once

local function ids_of(key, first, before, count)
  local ids, step = {}, SMALL
  local last = before == '' and '+' or '(' .. before
  while #ids < count do
    local asked = math.min(step, count - #ids)
    local rows = redis.pcall('XREVRANGE', key, last, first, 'COUNT', asked)
    if rows.err then return ids, 0 end  -- another type: somebody else's key
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
