"""A file in sentences: what an operator reads to see whether it says what was meant."""

from gateway.cli.check.explain import explain
from tests.support.config import loads

FILE = """
server: {listen: "0.0.0.0:8443", admin_token: 0123456789abcdef, workers: 4, tls: {certificate: a, key: b}}
broker: {url: "redis://:c4n4ry@redis", prefix: shop}
cors: {origins: [https://app.example.com], credentials: true}
auth:
  jwt:
    - {algorithms: [RS256, ES256], jwks_url: https://a.example.com/keys, issuer: a, audience: sse}
    - {algorithms: [HS256], secret: 0123456789c4n4ry0123456789abcdef, issuer: b}
  forward: {url: "https://app.example.com/may?key=s3cret"}
sources:
  app: {type: redis-pubsub, url: "redis://:c4n4ry@redis"}
  log: {type: redis-stream, url: "redis://:c4n4ry@redis"}
  bus: {type: kafka, brokers: "k1:9092"}
  idle: {type: kafka, brokers: ""}
  hooks: {type: webhook, verify: {bearer: [c4n4ry]}}
channels:
  news: {from: [{source: app, topic: "news.*"}, {source: idle, topic: n}], access: public, cors: {origins: [https://news.example.com]}}
  user.{id}:
    from: [{source: log, topic: "user:{id}"}, {source: bus, topic: users, fields: {id: "{key}"}}]
    access: {claims: {sub: "{id}"}}
    history: none
    payload: envelope
    format: data
    slow_client: {conflate: "{/symbol}"}
    stale_after: 90s
    critical: true
  team: {from: [{source: hooks, topic: team}], access: forward, history: {events: 5, age: ~}, slow_client: skip}
  all: {from: [{source: hooks, topic: all}], access: token, payload: text, slow_client: conflate}
"""

SAID = """\
listens       https://0.0.0.0:8443; admin http://127.0.0.1:9090 with a token
log           in Redis, keys shop:…: for any number of hosts
streams       at most 15000 in each of 4 workers
              10 for one user, 1000 from one address, 50 channels on one

news
  readers       everyone
  from pages of https://news.example.com, with cookies
  fed by        app: PUBLISH news.*
                idle (kafka), which is off
  payload       JSON as it is; clients get it in an envelope with id, type and time
  history       1000 events, at most 5m old
  slow clients  are disconnected once missed events have expired, and reconnect to a gap

user.{id} (one for each {id})
  readers       clients with a token signed with RS256/ES256 by a for sse, or signed with HS256 by b, with sub {id}
  from pages of https://app.example.com, with cookies
  fed by        log: XADD user:{id}
                bus: topic users of k1:9092, {id} from {key}
  payload       {type, payload, timestamp}; clients get it alone
  history       none: clients that reconnect have missed events, and get a gap
  slow clients  get the newest event of each type and key {/symbol}
  stale         after 90s without an event, and then the node is unready

team
  readers       clients that https://app.example.com/may?key=… allows
  from pages of https://app.example.com, with cookies
  fed by        POST /hooks/hooks, topic team
  payload       JSON as it is; clients get it in an envelope with id, type and time
  history       5 events
  slow clients  get a gap, then the oldest event in the history

all
  readers       clients with a token signed with RS256/ES256 by a for sse, or signed with HS256 by b, whose channels claim lists it
  from pages of https://app.example.com, with cookies
  fed by        POST /hooks/hooks, topic all
  payload       text as it is; clients get it in an envelope with id, type and time
  history       1000 events, at most 5m old
  slow clients  get the newest event of each type"""


def test_every_channel_in_sentences() -> None:
    """Operators read each rule, source and policy here, and must find no secret."""
    said = explain(loads(FILE, environ={}))
    assert said == SAID
    assert "c4n4ry" not in said


def test_acknowledgements() -> None:
    """Clients that cannot acknowledge are closed repeatedly: the author of the file should know."""
    file = FILE + "ack: {}\n"
    file = file.replace("slow_client: skip}", "slow_client: skip, ack: none}")
    file = file.replace("payload: text,", "payload: text, ack: {interval: 10s, retry_limit: 1},")
    rows = [line for line in explain(loads(file, environ={})).splitlines() if line.startswith("  heartbeats")]
    every = "  heartbeats    must be acknowledged every"
    assert rows == [
        f"{every} 30s, within 1m; the stream is closed once 3 in a row are missed",
        f"{every} 30s, within 1m; the stream is closed once 3 in a row are missed",
        f"{every} 10s, within 1m; the stream is closed once one is missed",
    ]
