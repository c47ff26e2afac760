"""The abuser: doses of some abuses at a steady rate, from an address of its own.

usage: python -m bench.abuser PORT NAME=RATE…

It says ``ready``; at a line with a number it goes on for so many seconds, and says how many doses it gave.
"""

import asyncio
import sys

import uvloop

from bench.abuses import ABUSES, Attacker, prepare


def main() -> None:
    """Abuse as told by the command line."""
    port = int(sys.argv[1])
    rates = {name: float(rate) for name, rate in (each.split("=") for each in sys.argv[2:])}
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        print(uvloop.run(_abuse(port, rates, float(line))), flush=True)


async def _abuse(port: int, rates: dict[str, float], seconds: float) -> int:
    return sum(await asyncio.gather(*(_give(port, name, rate, seconds) for name, rate in rates.items())))


async def _give(port: int, name: str, rate: float, seconds: float) -> int:
    """Give doses of one abuse, whatever became of those before."""
    attacker = Attacker(
        port, f"127.0.0.{20 + [*ABUSES].index(name)}", channel="dump", hook="/hooks/hooks?topic=dump"
    )
    attacker.patience = seconds
    loop = asyncio.get_running_loop()
    began = loop.time()
    doses: set[asyncio.Future[object]] = set()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        if loop.time() > began + seconds:
            break
        doses.add(asyncio.ensure_future(ABUSES[name](attacker, number)))
    await asyncio.sleep(max(0.0, began + seconds - loop.time()))
    for each in doses:
        each.cancel()
    await asyncio.gather(*doses, return_exceptions=True)
    return len(doses)


if __name__ == "__main__":
    main()
