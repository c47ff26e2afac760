"""aiohttp-sse-client2, as its README says; its session's timeout of five minutes for a whole stream is off."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import aiohttp
from aiohttp_sse_client2 import client as sse_client

from tests.clients.python.report import Report

if TYPE_CHECKING:
    from tests.clients.python.zoo import Job


def start(job: "Job", report: Report) -> None:
    """Read until it raises, which a cut is enough for."""
    asyncio.run(_read(job, report))


async def _read(job: "Job", report: Report) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=job.watchdog / 1000)
    try:
        async with sse_client.EventSource(
            job.url,
            headers=job.headers(),
            timeout=timeout,
            reconnection_time=timedelta(seconds=0.1),
            on_open=lambda: report("open"),
            on_error=lambda: report("error", message="the stream ended"),
        ) as source:
            async for event in source:
                report("event", type=event.type, data=event.data, id=event.last_event_id)
    except (ConnectionError, TimeoutError, UnicodeDecodeError, aiohttp.ClientError) as error:
        report("error", message=repr(error))
