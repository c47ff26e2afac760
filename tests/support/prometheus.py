"""Prometheus from Debian, with the configuration that we ship, and what it answers."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.process import free_port, running, wait_for_port
from tests.support.gateway import eventually
from tests.support.needs import need

SHIPPED = Path(__file__).parents[2] / "deploy/prometheus"

SCRAPE = "5s"
"""How often, and how long one may take."""


class Prometheus:
    """A running one. All questions are about now."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._session = session

    async def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=query) as answer:
            told = await answer.json()
        assert told["status"] == "success", told
        return told["data"]

    async def is_ready(self) -> bool:
        """Tell whether it answers questions yet."""
        async with self._session.get(f"{self._url}/-/ready") as answer:
            return answer.status == 200

    async def query(self, expression: str) -> list[float]:
        """Return the values of an expression."""
        found = await self.ask("query", query=expression)
        return [float(each["value"][1]) for each in found["result"]]

    async def states(self) -> dict[str, str]:
        """Return the state of each alert: inactive, pending or firing."""
        groups = (await self.ask("rules", type="alert"))["groups"]
        return {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}


@asynccontextmanager
async def prometheus_running(target: str, token: str) -> AsyncIterator[Prometheus]:
    """Run one that scrapes ``target`` as the first job of our prometheus.yaml does, with our alerts."""
    program, port = need("prometheus", "prometheus"), free_port()
    config = yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), SCRAPE)
    config["scrape_configs"] = [job] = config["scrape_configs"][:1]
    job["static_configs"] = [{"targets": [target]}]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "alerts.yaml").write_bytes((SHIPPED / "alerts.yaml").read_bytes())
        (folder / "token").write_text(token)
        job["authorization"]["credentials_file"] = "token"
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        options = {
            "config.file": folder / "prometheus.yaml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"127.0.0.1:{port}",
            "log.level": "warn",
        }
        with running(program, *(f"--{key}={value}" for key, value in options.items())) as process:
            wait_for_port(port, alive=process.is_running)
            async with aiohttp.ClientSession() as session:
                prometheus = Prometheus(port, session)
                await eventually(prometheus.is_ready)
                yield prometheus
