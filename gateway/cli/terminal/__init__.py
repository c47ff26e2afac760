"""Commands for a terminal: ``tail`` follows channels, ``publish`` sends a test event, ``token`` signs one.

`parser`, `paint`, `lines`, `feeds`, `signing` and `claims` are pure; `door` says where the gateway is and who
asks, `follower` listens, `senders` send.
"""
