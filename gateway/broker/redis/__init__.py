"""The log in Redis: one stream per channel, appended to by a Lua script."""
