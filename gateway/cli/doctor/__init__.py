"""``sse-gateway doctor``: finds what breaks event streams at a deployed URL.

`probe` sends the requests step by step; the verdicts on what it observes (`tls`, `response`, `cors`,
`streaming`) are pure; `command` prints them.
"""
