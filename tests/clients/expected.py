"""t"""
import json
from pathlib import Path
def check(scenario, found):
    Path("/tmp/zoo-out.txt").open("a").write(json.dumps({scenario: {k: v for k, v in found.items() if v != "whole"}}, indent=1) + "\n")
def expected(a, b): return "whole" if b in ("sse-gateway-client","event-source-polyfill","launchdarkly-eventsource","httpx-sse","sseclient-py","curl") else "x"
