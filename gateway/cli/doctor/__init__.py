"""``sse-gateway doctor``: walks a deployed URL and says what breaks event streams there.

`walk` asks, one step after the other; what it saw goes to the verdicts (`certificate`, `answer`, `cors`,
`arrivals`, `resume`), which are pure; `report` prints what they found.
"""
