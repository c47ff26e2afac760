"""Follows the log in Redis: one pub/sub channel carries every event to every node.

Each live message names the id before it, so a missing message shows at once. It is reported as a gap, and
streams read the events.

A pub/sub connection can die without an error. So the follower publishes a canary now and then and
expects it back, compares the log's head with its own, and checks with Sentinel that the server is still the
primary. If anything fails, it replaces all connections, and retries until it succeeds.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from gateway.broker.delivery import Delivery
from gateway.broker.redis.connection import RedisConnection
from gateway.broker.redis.event_log import SUBSCRIBE_CONFIRMATIONS, RedisEventLog, decode_live_message
from gateway.core.backoff import Backoff
from gateway.core.event import EventId
from gateway.net.redis_locator import describe_redis_error
from gateway.observability.task_supervisor import TaskSupervisor

log = structlog.get_logger("gateway.broker")


class FollowerConnectionLost(Exception):
    """The follower's connection can no longer be relied on."""


class RedisFollower:
    """Delivers live messages and keeps the connection up; `run` is a supervised task that never returns."""

    def __init__(
        self,
        connection: RedisConnection,
        event_log: RedisEventLog,
        delivery: Delivery,
        background: TaskSupervisor,
    ) -> None:
        self.head = EventId(0, 0)  # of the last event that was delivered, or reported as lost
        self.last_error = ""
        self.fatal_error: str | None = None  # why Redis refused this node's credentials
        self.first_attempt_done = asyncio.Event()  # connected for the first time, or refused
        self._connection = connection
        self._event_log = event_log
        self._delivery = delivery
        self._background = background
        self._last_stored_event: tuple[str, EventId] | None = None  # its channel and id
        self._canary_number = 0
        self._canary_received = asyncio.Event()

    async def run(self) -> None:
        """Connect and follow until cancelled. Logs each outage once, and again when its cause changes."""
        backoff, logged = Backoff(base_seconds=0.1, cap_seconds=3.0), ""
        while True:
            try:
                server = await self._connection.locate()
                async with self._connection.open(server) as (client, pubsub):
                    await self._catch_up(client, pubsub)
                    if logged:
                        log.info("broker_up")
                    logged = ""
                    backoff.reset()
                    await self._follow_until_error(client, pubsub, server)
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                text = self.fatal_error = str(error)
                self.first_attempt_done.set()
            except (RedisError, OSError, ValueError) as error:
                text = describe_redis_error(error, self._connection.timeout_seconds)
            except FollowerConnectionLost as error:
                text = str(error)
            except Exception as error:
                self._background.record_failure("redis_follower", error)
                text = type(error).__name__
            self.last_error = text
            if text != logged:
                log.error("broker_down", error=text, retrying=True)
                logged = text
            await asyncio.sleep(backoff.next_delay())

    async def _catch_up(self, client: Redis, pubsub: PubSub) -> None:
        """Subscribe first and read the head after it, so that no event falls in between."""
        async with asyncio.timeout(self._connection.connect_timeout_seconds):
            await self._event_log.subscribe(pubsub)
            head, _ = await self._event_log.append(client, ())
            if self._last_stored_event is not None and not await self._event_log.verify_last_event(
                client, *self._last_stored_event
            ):
                known, note = str(self._event_log.last_known_id), "Redis lost events that it had acknowledged"
                log.error("event_log_lost_events", known=known, note=note)
        if head > self.head:
            if self.head != EventId(0, 0):
                log.warning("follower_skipped_ahead", after=str(self.head), until=str(head))
            self._skip_to(head)
        self._connection.mark_up()
        self.fatal_error = None
        self.first_attempt_done.set()

    async def _follow_until_error(self, client: Redis, pubsub: PubSub, server: Mapping[str, Any]) -> None:
        work = [
            asyncio.create_task(self._listen(pubsub), name="redis listener"),
            asyncio.create_task(self._monitor_connection(client, server), name="redis monitor"),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _listen(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=3600)
            if message is None:
                continue
            if message["type"] in SUBSCRIBE_CONFIRMATIONS:
                raise FollowerConnectionLost("redis-py replaced the subscription's connection")
            if message["channel"] == self._event_log.live_channel:
                self._handle_live_message(message["data"])
            elif int(message["data"]) == self._canary_number:
                self._canary_received.set()

    def _handle_live_message(self, message: bytes) -> None:
        """Deliver the events of a live message, without those delivered before; report a gap before it."""
        before, events = decode_live_message(message)
        if before > self.head:
            log.warning("live_messages_missed", after=str(self.head), until=str(before))
            self._skip_to(before)
        events = [event for event in events if event.id > self.head]
        if events:
            self.head = events[-1].id
            self._event_log.note_id(self.head)
            self._last_stored_event = next(
                ((each.channel, each.id) for each in reversed(events) if each.is_retained),
                self._last_stored_event,
            )
            self._delivery.deliver(events)

    def _skip_to(self, head: EventId) -> None:
        self.head = head
        self._event_log.note_id(head)
        self._delivery.report_gap(head)

    async def _monitor_connection(self, client: Redis, server: Mapping[str, Any]) -> None:
        """Check again and again that messages arrive and the log goes on. Raises FollowerConnectionLost."""
        timeout = self._connection.timeout_seconds
        while True:
            if self._connection.is_demoted:
                raise FollowerConnectionLost("the server is no longer the primary")
            self._connection.is_suspect.clear()
            self._canary_number += 1
            self._canary_received.clear()
            async with asyncio.timeout(timeout):
                head, _ = await self._event_log.append(client, ())
                await self._event_log.publish_canary(client, self._canary_number)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._canary_received.wait()
            if not self._canary_received.is_set():
                raise FollowerConnectionLost(f"Redis delivered no message within {timeout:g} s")
            if self.head < head:
                raise FollowerConnectionLost(f"the log is at {head}, and the live messages at {self.head}")
            if not await self._connection.is_primary(server):
                raise FollowerConnectionLost("another server is the primary now")
            await self._connection.close_idle()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout / 2):
                    await self._connection.is_suspect.wait()
