"""The hub: the channels of a node and their audiences, fan-out and replay."""
