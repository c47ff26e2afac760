"""Who sent it: vectors cross-checked with the senders' own libraries, and everything that must not pass."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.config.model.verify import VerifyConfig
from gateway.core.errors import Unauthorized, Unavailable
from gateway.webhooks.credentials import VerifiedMessage
from gateway.webhooks.formats.base import WebhookResponse
from gateway.webhooks.idempotency import (
    MAX_REMEMBERED_MESSAGES,
    MAX_REMEMBERED_RESPONSE_BYTES,
    IdempotencyCache,
)
from gateway.webhooks.signatures import build_verifier

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NOW = 1_700_000_000
BODY = b'{"a" : 1}'
STANDARD = build_verifier(VerifyConfig.model_validate({"standard_webhooks": [SECRET, OLD]}))


def check(
    verify: dict[str, Any], headers: dict[str, str], body: bytes = BODY, now: float = NOW
) -> VerifiedMessage:
    found = build_verifier(VerifyConfig.model_validate(verify))
    found.check_headers(headers, None)
    return found.verify_message(headers, body, now)


def signed(secret: str = SECRET, id: str = "msg_1", at: int = NOW, names: str = "webhook") -> dict[str, str]:
    signature = Webhook(secret).sign(id, datetime.fromtimestamp(at, UTC), BODY.decode())
    return {f"{names}-id": id, f"{names}-timestamp": str(at), f"{names}-signature": signature}


def code(verify: dict[str, Any], headers: dict[str, str], body: bytes = BODY, now: float = NOW) -> str:
    with pytest.raises(Unauthorized) as caught:
        check(verify, headers, body, now)
    assert not any(secret in caught.value.message for secret in ("kkk", SECRET, SECRET[6:], "s3cret"))
    return caught.value.code


@pytest.mark.parametrize("names", ["webhook", "svix"])
@pytest.mark.parametrize("secret", [SECRET, OLD, SECRET.removeprefix("whsec_")])
def test_what_the_standard_library_signs_is_taken(secret: str, names: str) -> None:
    """Either secret of a rotation, and Svix's names."""
    proof = STANDARD.verify_message(signed(secret, names=names), BODY, NOW + 299)
    assert proof == VerifiedMessage("msg_1", f"msg_1 {NOW}")


@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text("abc_123", min_size=1, max_size=9))
def test_the_library_and_the_gateway_agree_both_ways(text: str, id: str) -> None:
    """What one signs the other takes; what one refuses, so does the other."""
    now = datetime.now(UTC)
    headers = {"webhook-id": id, "webhook-timestamp": str(int(now.timestamp()))}
    headers["webhook-signature"] = Webhook(SECRET).sign(id, now, text)
    assert STANDARD.verify_message(headers, text.encode(), now.timestamp()).message_id == id
    ours = hmac.digest(b"k" * 32, f"{id}.{headers['webhook-timestamp']}.{text}".encode(), hashlib.sha256)
    ours_headers = {**headers, "webhook-signature": "v1,AAAA v1a,x v1," + base64.b64encode(ours).decode()}
    Webhook(SECRET).verify(text, ours_headers, json_parse=False)
    STANDARD.verify_message(ours_headers, text.encode(), now.timestamp())
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(text + "x", headers)
    with pytest.raises(Unauthorized):
        STANDARD.verify_message(headers, text.encode() + b"x", now.timestamp())


def test_standard_messages_that_must_not_pass() -> None:
    """Altered, expired, from the future, another id, another secret, nothing at all."""
    verify = {"standard_webhooks": [SECRET]}
    good = signed()
    assert code(verify, good, BODY + b" ") == "bad_signature"
    assert code(verify, {**good, "webhook-id": "msg_2"}) == "bad_signature"
    assert code(verify, {**good, "webhook-timestamp": str(NOW + 1)}) == "bad_signature"
    assert code(verify, good, now=NOW + 301) == "expired_signature"
    assert code(verify, good, now=NOW - 301) == "expired_signature"
    assert code(verify, signed(OLD)) == "bad_signature"
    for signature in (
        "v1,",
        "v2," + good["webhook-signature"][3:],
        good["webhook-signature"][3:],
        "v1,%",
        "v1,\udcff",
    ):
        assert code(verify, {**good, "webhook-signature": signature}) == "bad_signature"
    for timestamp in ("x", "-1", "1e9", "\u0661", "9" * 13, "\udcff"):
        assert code(verify, {**good, "webhook-timestamp": timestamp}) == "bad_signature"
    assert code(verify, {}) == "missing_signature"
    assert code(verify, {**good, "webhook-id": ""}) == "missing_signature"


def test_github() -> None:
    """The example of GitHub's own documentation; the event is the type, the delivery the id."""
    headers = {
        "x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        "x-github-delivery": "d-1", "x-github-event": "push",
    }  # fmt: skip
    verify = {"github": ["new", "It's a Secret to Everybody"]}
    assert check(verify, headers, b"Hello, World!") == VerifiedMessage("d-1", "d-1", "push")
    assert code(verify, headers, b"Hello, World?") == "bad_signature"
    assert code(verify, {}, b"Hello, World!") == "missing_signature"
    assert code(verify, {"x-hub-signature-256": "sha256=zz"}) == "bad_signature"
    assert code(verify, {"x-hub-signature": "sha1=x"}) == "missing_signature"


def stripe(secret: bytes = b"s3cret", at: int = NOW, body: bytes = BODY) -> str:
    return hmac.new(secret, str(at).encode() + b"." + body, hashlib.sha256).hexdigest()


def test_stripe() -> None:
    """Several signatures while a secret is rolled; the time is signed."""
    verify = {"stripe": ["s3cret"], "tolerance": "1m"}
    proof = check(verify, {"stripe-signature": f"t={NOW},v1={'0' * 64},v1={stripe()},v0=x"})
    body = b'{"id":"evt_1","type":"charge.succeeded"}'
    event = check(verify, {"stripe-signature": f"t={NOW},v1={stripe(body=body)}"}, body)
    assert (event.message_id, event.event_type) == ("evt_1", "charge.succeeded")
    assert proof.attempt_id == check(verify, {"stripe-signature": f"v1={stripe()}, t={NOW}"}).attempt_id
    assert code(verify, {"stripe-signature": f"t={NOW},v1={stripe(b'other')}"}) == "bad_signature"
    assert code(verify, {"stripe-signature": f"t={NOW},v0={stripe()}"}) == "missing_signature"
    assert code(verify, {"stripe-signature": f"t={NOW},v1={stripe()}"}, now=NOW + 61) == "expired_signature"
    assert code(verify, {"stripe-signature": f"t={NOW - 9},v1={stripe()}"}) == "bad_signature"


def test_any_hmac() -> None:
    """Slack's way (a text around the body), Shopify's (base64), and a plain hex digest."""
    slack = {"hmac": {"secrets": ["s3cret"], "header": "X-Slack-Signature", "prefix": "v0=",
                      "content": "v0:{timestamp}:{body}", "timestamp_header": "X-Slack-Request-Timestamp"}}  # fmt: skip
    digest = hmac.new(b"s3cret", f"v0:{NOW}:".encode() + BODY, hashlib.sha256).hexdigest()
    headers = {"x-slack-signature": f"v0={digest}", "x-slack-request-timestamp": str(NOW)}
    proof = check(slack, headers)
    assert proof.message_id == proof.attempt_id
    assert str(NOW) in str(proof.attempt_id)
    assert code(slack, {**headers, "x-slack-request-timestamp": str(NOW + 1)}) == "bad_signature"
    assert code(slack, headers, now=NOW + 1000) == "expired_signature"
    assert code(slack, {"x-slack-signature": digest}) == "missing_signature"
    shopify = {"hmac": {"secrets": ["old", "s3cret"], "header": "X-Shopify-Hmac-Sha256", "encoding": "base64",
                        "id_header": "X-Shopify-Webhook-Id"}}  # fmt: skip
    digest = base64.b64encode(hmac.digest(b"s3cret", BODY, "sha256")).decode()
    assert check(shopify, {"x-shopify-hmac-sha256": digest, "x-shopify-webhook-id": "w"}) == VerifiedMessage(
        "w", "w"
    )
    assert code(shopify, {"x-shopify-hmac-sha256": digest}) == "missing_signature"
    for algorithm in ("sha1", "sha512"):
        plain = {"hmac": {"secrets": ["s3cret"], "header": "sig", "algorithm": algorithm}}
        assert check(plain, {"sig": hmac.new(b"s3cret", BODY, algorithm).hexdigest()}) == VerifiedMessage()
        assert code(plain, {"sig": hmac.new(b"s3cret", BODY, "sha256").hexdigest()}) == "bad_signature"


def test_tokens_and_passwords() -> None:
    """In the header; in the query only where the file says so."""
    basic = {"basic": ["user:s3:cret", "old:pass"]}

    def header(text: str) -> dict[str, str]:
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    assert check(basic, header("user:s3:cret")) == check(basic, header("old:pass")) == VerifiedMessage()
    for wrong in ("user:x", "user:", "", "s3:cret"):
        assert code(basic, header(wrong)) == "invalid_token"
    assert code(basic, {"authorization": "Basic \udcff"}) == "invalid_token"
    assert code(basic, {}) == "missing_token"
    found = build_verifier(VerifyConfig.model_validate({"access_token": ["s3cret"]}))
    found.check_headers({}, "s3cret")
    found.check_headers({"authorization": "Bearer s3cret"}, None)
    for headers, token in (({}, None), ({}, "x"), ({"authorization": "Bearer x"}, "s3cret")):
        with pytest.raises(Unauthorized):
            found.check_headers(headers, token)
    with pytest.raises(Unauthorized):
        build_verifier(VerifyConfig.model_validate({"bearer": ["s3cret"]})).check_headers({}, "s3cret")


def test_a_message_is_taken_once() -> None:
    """The same id at the same time gets the first answer; a retry that signs the time anew is the log's to know."""
    replays = IdempotencyCache()
    reply = WebhookResponse(200, "application/json", b"{}")
    first, retry = (STANDARD.verify_message(signed(at=at), BODY, NOW) for at in (NOW, NOW + 5))
    assert replays.begin(first) is None
    with pytest.raises(Unavailable):
        replays.begin(first)  # at the same moment: whether the first one succeeds is open
    replays.finish(first, None)
    assert replays.begin(first) is None, "what is not in the log may be tried again"
    replays.finish(first, reply, 2)
    assert replays.begin(first) == (reply, 2)
    assert replays.begin(retry) is None


def test_messages_are_remembered_within_bounds() -> None:
    """Neither many messages nor long answers fill the memory; the oldest are forgotten."""
    replays = IdempotencyCache()
    long = WebhookResponse(200, "application/json", bytes(MAX_REMEMBERED_RESPONSE_BYTES + 1))
    for number in range(MAX_REMEMBERED_MESSAGES + 10):
        assert replays.begin(VerifiedMessage(attempt_id=str(number))) is None
        replays.finish(VerifiedMessage(attempt_id=str(number)), long, 1)
    assert len(replays._messages) == MAX_REMEMBERED_MESSAGES
    assert replays.begin(VerifiedMessage(attempt_id="20")) is None, "the log knows what was answered"
    assert replays.begin(VerifiedMessage(attempt_id="0")) is None


@pytest.mark.parametrize("body", [b"{}", b'{"id": "evt_1"}', b"no JSON"])
def test_what_happens_once_has_an_id(body: bytes) -> None:
    """Nodes that did not take a message find its events in the log, whatever the sender's scheme."""
    at = str(NOW)
    stripe = hmac.new(b"s3cret", at.encode() + b"." + body, "sha256").hexdigest()
    generic = {
        "secrets": ["s3cret"],
        "header": "sig",
        "content": "{timestamp}.{body}",
        "timestamp_header": "t",
    }
    proofs = [
        build_verifier(VerifyConfig.model_validate({"stripe": ["s3cret"]})).verify_message(
            {"stripe-signature": f"t={at},v1={stripe}"}, body, NOW
        ),
        build_verifier(VerifyConfig.model_validate({"hmac": generic})).verify_message(
            {"sig": stripe, "t": at}, body, NOW
        ),
    ]
    assert all(proof.attempt_id is not None and proof.message_id for proof in proofs)


@given(
    st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "stripe-signature",
                         "x-hub-signature-256", "authorization", "sig"]),
        st.text(max_size=30) | st.sampled_from(["v1,AAAA", "sha256=00", f"t={NOW},v1=00", str(NOW), "Basic AA==", "\udcff"]),
    ),
    st.binary(max_size=20),
)  # fmt: skip
def test_no_header_escapes(headers: dict[str, str], body: bytes) -> None:
    """Whatever is sent without a secret is Unauthorized and nothing else."""
    for verify in (
        {"standard_webhooks": [SECRET]}, {"github": ["s3cret"]}, {"stripe": ["s3cret"]}, {"basic": ["a:b"]},
        {"bearer": ["s3cret"]}, {"hmac": {"secrets": ["s3cret"], "header": "sig", "encoding": "base64"}},
    ):  # fmt: skip
        with pytest.raises(Unauthorized):
            check(verify, headers, body)
