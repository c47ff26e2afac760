"""Helpers of ``tail`` and ``publish``: the gateway's endpoint, following, printing, building and sending."""
