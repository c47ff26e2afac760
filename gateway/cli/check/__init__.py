"""``sse-gateway check``: what is wrong with a file, what is rarely meant, what it says, and what it reaches.

``report`` prints; ``explain`` is a file in sentences; ``connect`` tries what the file names.
"""
