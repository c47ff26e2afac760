"""A relay between a client and a gateway that may gather bytes, or choose another gateway each time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def relay(upstream: Callable[[], int], *, gather: float = 0.0) -> AsyncIterator[int]:
    """Relay to the port that ``upstream`` names for each connection; ``gather`` is in seconds."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(wait)
                writer.write(data)
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pipe(reader, up_writer, 0.0))
            tasks.create_task(pipe(up_reader, writer, gather))

    # Leaving the block ends what the listener started, too.
    running: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(connected(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
