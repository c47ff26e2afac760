"""``sse-gateway check``: reports errors and warnings of a configuration, and tries what it names.

`report` prints; `explain` describes the configuration; `connect` tries its servers and files.
"""
