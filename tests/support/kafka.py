"""A Kafka server of a test's own: noida-db speaks the protocol."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition

from bench.process import free_port
from tests.support.deadline import safety_net


class KafkaServer:
    """One server on a port that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        binary = folder / "noida-db"
        shutil.copy(str(files("noida_db").joinpath("noida-db")), binary)
        binary.chmod(0o755)
        self._binary = binary

    @property
    def brokers(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [self._binary, "start", "--host", "127.0.0.1", "--only", "kafka", "--kafka-port", str(self.port),
             "--data-dir", self._folder / "data"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        async with safety_net():
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                    break
                await asyncio.sleep(0.02)
            async with self.admin():
                pass

    def kill(self) -> None:
        """kill -9, harmless when it does not run."""
        self._end(signal.SIGKILL)

    def has_saved(self, topic: str, records: int) -> bool:
        """Tell whether a topic's first so many records are on the disk: a kill before loses them, acknowledged or not.

        The server writes all of its state about once a second.
        """
        try:
            state = json.loads((self._folder / "data/kafka.json").read_text())
        except (OSError, ValueError):  # not there yet, or half written
            return False
        partitions = dict(state["topics"]).get(topic, {"partitions": []})["partitions"]
        return bool(sum(partition["high_watermark"] for _, partition in partitions) >= records)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def create(self, topics: Mapping[str, int]) -> None:
        """Create topics with so many partitions each."""
        async with self.admin() as admin:
            await admin.create_topics([NewTopic(name, count, 1) for name, count in topics.items()])

    async def trim(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, as retention does."""
        async with self.admin() as admin:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before)})

    @contextlib.asynccontextmanager
    async def producer(self) -> AsyncIterator[AIOKafkaProducer]:
        producer = AIOKafkaProducer(bootstrap_servers=self.brokers)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    async def send(self, topic: str, *values: Any, partition: int = 0, **more: Any) -> None:
        """Send text values, in order."""
        async with self.producer() as producer:
            for value in values:
                data = None if value is None else str(value).encode()
                await producer.send_and_wait(topic, data, partition=partition, **{"key": b"k", **more})


@contextlib.asynccontextmanager
async def kafka_server() -> AsyncIterator[KafkaServer]:
    """Run a server for the length of a block."""
    with tempfile.TemporaryDirectory() as folder:
        server = KafkaServer(Path(folder))
        try:
            await server.start()
            yield server
        finally:
            server.kill()
