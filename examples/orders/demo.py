"""``make demo``: a gateway, a shop that posts its orders to it, and the page that shows them."""

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import aiohttp
from aiohttp import web
from shop import Shop

FOLDER = Path(__file__).parent
FILES = {"/orders.js": "text/javascript", "/orders.css": "text/css"}

RETRY_SECONDS = 0.5
"""Seconds until a post that was not accepted is retried."""

SHUTDOWN_SECONDS = 10.0
"""Seconds in which the gateway may shut down before it is killed."""

TRY = """
Try:
  - Open the page in a second tab. Both show the same, over one stream: the console counts it.
  - Stop the gateway: kill {pid}
    The page says so. Another gateway starts {restart:g} s later, and the page continues with nothing missing.
  - Switch the network off for some seconds (developer tools, Network, Offline), and on again:
    what happened meanwhile arrives at once.
  - Switch it off for more than a minute: that is longer than the history of the channel. The gateway reports
    the gap, and the page fetches the state from the shop again.

Ctrl-C ends all."""


class Demo:
    """The page, the shop and the gateway of the demo."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._token = secrets.token_urlsafe(32)
        self._shop = Shop()
        self._page = f"http://127.0.0.1:{options.port}"
        self._gateway = f"http://127.0.0.1:{options.gateway}"
        self._console = f"http://127.0.0.1:{options.admin}"
        self._environ = {
            **os.environ,
            "DEMO_LISTEN": f"127.0.0.1:{options.gateway}",
            "DEMO_ADMIN": f"127.0.0.1:{options.admin}",
            "DEMO_LOG": f"sqlite:///{folder / 'log.db'}",
            "DEMO_PAGE": self._page,
            "DEMO_TOKEN": self._token,
        }

    async def run(self, ending: asyncio.Event) -> int:
        """Run until ``ending`` is set; return the exit status."""
        runner = web.AppRunner(self._app(), access_log=None)
        await runner.setup()
        tasks: list[asyncio.Task[int]] = []
        try:
            await web.TCPSite(runner, "127.0.0.1", self._options.port).start()
            tasks = [
                asyncio.create_task(task) for task in (self._keep_gateway(), self._sell(), _wait(ending))
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return max(task.result() for task in done)
        except OSError as error:
            print(f"The page cannot be served: {error}. Try another port: --port", file=sys.stderr)
            return 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()

    async def _keep_gateway(self) -> int:
        """Run gateways, one after the other. Returns where the first one does not start."""
        has_answered = False
        while True:
            command = [sys.executable, "-m", "gateway", "run", "--config", str(FOLDER / "gateway.yaml")]
            process = await asyncio.create_subprocess_exec(*command, env=self._environ)
            try:
                if await self._answers(process) and not has_answered:
                    has_answered = True
                    print(f"The page:     {self._page}/")
                    print(f"The gateway:  {self._gateway}/events/orders   its console: {self._console}/")
                    print(TRY.format(pid=process.pid, restart=self._options.restart), flush=True)
                elif has_answered and process.returncode is None:
                    print(f"Here is another gateway. To stop it: kill {process.pid}", flush=True)
                status = await process.wait()
            finally:
                await _ended(process)
            if not has_answered:
                return status or 1
            print(f"The gateway ended; another one starts in {self._options.restart:g} s.", flush=True)
            await asyncio.sleep(self._options.restart)

    async def _answers(self, process: asyncio.subprocess.Process) -> bool:
        """Wait until the gateway answers, or has ended."""
        async with aiohttp.ClientSession() as session:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self._console}/readyz") as answer:
                        if answer.status == 200:
                            return True
                await asyncio.sleep(0.1)
        return False

    async def _sell(self) -> int:
        """Run the shop, one step after the other; each is posted before the next one."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                order = self._shop.step()
                event = {"type": f"order.{order.status}", "payload": asdict(order), "timestamp": order.at}
                # A post whose response was lost is sent again, and still makes one event only.
                headers = {
                    "Authorization": f"Bearer {self._token}",
                    "Idempotency-Key": f"{order.number}-{order.version}",
                }
                await self._post(session, event, headers)
                await asyncio.sleep(self._options.every)

    async def _post(
        self, session: aiohttp.ClientSession, event: dict[str, object], headers: dict[str, str]
    ) -> None:
        """Post an event until the gateway has it: only a 2xx confirms that."""
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(f"{self._gateway}/hooks/shop", json=event, headers=headers) as answer:
                    if answer.ok:
                        return
            await asyncio.sleep(RETRY_SECONDS)

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/orders", self._orders)
        for path in FILES:
            app.router.add_get(path, _file)
        return app

    async def _index(self, request: web.Request) -> web.Response:
        text = (FOLDER / "index.html").read_text().replace("http://127.0.0.1:8080", self._gateway)
        # What a page of yours would allow too: its own files, and the gateway's module and stream.
        policy = (
            f"default-src 'self'; script-src 'self' {self._gateway}; connect-src 'self' {self._gateway}; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _orders(self, request: web.Request) -> web.Response:
        return web.json_response(self._shop.snapshot(), headers={"Cache-Control": "no-store"})


async def _file(request: web.Request) -> web.Response:
    text = (FOLDER / request.path[1:]).read_text()
    return web.Response(text=text, content_type=FILES[request.path], headers={"Cache-Control": "no-cache"})


async def _wait(ending: asyncio.Event) -> int:
    await ending.wait()
    return 0


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a gateway, however little time is left."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(SHUTDOWN_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()


async def main(options: argparse.Namespace) -> int:
    """Run the demo in a folder of its own, until a signal."""
    ending = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, ending.set)
    with tempfile.TemporaryDirectory(prefix="sse-gateway-demo-") as folder:
        return await Demo(options, Path(folder)).run(ending)


def options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the page (default: %(default)s)")
    parser.add_argument(
        "--gateway", type=int, default=8080, help="public port of the gateway (default: %(default)s)"
    )
    parser.add_argument("--admin", type=int, default=9090, help="its admin port (default: %(default)s)")
    parser.add_argument(
        "--every",
        type=float,
        default=0.7,
        metavar="SECONDS",
        help="between two changes (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="until a gateway that ended is followed by another one (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(options())))
