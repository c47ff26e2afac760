"""The key of the nonces: one for all nodes, however they come and whatever the board loses."""

import asyncio
import secrets

import pytest

from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.core.clock import unix_ms
from gateway.core.errors import Unavailable
from gateway.streams.acks import nonces
from gateway.streams.acks.nonces import MAX_KNOWN_KEYS, SHARED_KEY_NAME, NonceSigner
from tests.support.gateway import eventually
from tests.support.virtual import in_virtual_time


class FakeSharedStore(MemorySharedStore):
    """A board that nodes of one process share, and that can be away."""

    is_shared = True

    def __init__(self) -> None:
        super().__init__(unix_ms)
        self.is_away = False
        self.gets = 0

    async def get(self, name: str) -> bytes | None:
        self.gets += 1
        await asyncio.sleep(0.01)
        if self.is_away:
            raise Unavailable("away")
        return await super().get(name)


def agree(nodes: list[NonceSigner]) -> bool:
    """Tell whether each node knows what each of them makes."""
    made = [node.create("a", 1) for node in nodes]
    return all(node.verify("a", nonce) == 1 for node in nodes for nonce in made)


async def close(nodes: list[NonceSigner]) -> None:
    await asyncio.gather(*(node.close() for node in nodes))


def test_nodes_that_start_together_get_one_key() -> None:
    """Also if all of them find the board empty in the same moment."""

    async def main() -> None:
        board = FakeSharedStore()
        nodes = [NonceSigner(board) for _ in range(5)]
        assert not agree(nodes)
        for node in nodes:
            node.start_sharing()
            node.start_sharing()
        await asyncio.gather(*(node.wait_for_shared_key() for node in nodes))
        assert agree(nodes)
        await close(nodes)

    in_virtual_time(main())


def test_a_board_that_forgot_gets_the_key_back() -> None:
    """A Redis without persistence: the nodes that live have the key, and one that comes takes it."""

    async def main() -> None:
        board = FakeSharedStore()
        nodes = [NonceSigner(board) for _ in range(3)]
        for node in nodes:
            node.start_sharing()
        await asyncio.sleep(60)
        before = nodes[0].create("a", 1)
        board._entries.clear()
        await asyncio.sleep(60)
        nodes.append(NonceSigner(board))
        nodes[-1].start_sharing()
        await asyncio.sleep(60)
        assert agree(nodes)
        assert nodes[-1].verify("a", before) == 1
        await close(nodes)

    in_virtual_time(main())


def test_a_key_that_was_put_over_another_is_taken_and_the_old_one_known_on() -> None:
    """What streams were asked before must be good here still, and nobody is blamed for what others refused."""

    async def main() -> None:
        board = FakeSharedStore()
        node = NonceSigner(board)
        changes = []
        node.on_change.add(lambda: changes.append(1))
        node.start_sharing()
        await asyncio.sleep(60)
        old = node.create("a", 1)
        assert changes == []
        for number in range(MAX_KNOWN_KEYS - 1):
            await board.put(SHARED_KEY_NAME, secrets.token_bytes(32), 1000)
            await asyncio.sleep(60)
            assert len(changes) == number + 1
            assert node.verify("a", old) == 1
        await board.put(SHARED_KEY_NAME, secrets.token_bytes(32), 1000)
        await asyncio.sleep(60)
        assert node.verify("a", old) is None, "keys are not remembered for ever"
        await board.put(SHARED_KEY_NAME, b"no key", 1000)
        await asyncio.sleep(60)
        assert node.verify("a", node.create("a", 1)) == 1
        await node.close()

    in_virtual_time(main())


def test_a_nonce_of_an_unknown_key_makes_it_known() -> None:
    """A node whose own file asks nobody yet gets answers too; and made-up ones cost the board little."""

    async def main() -> None:
        board = FakeSharedStore()
        node, other = NonceSigner(board), NonceSigner(board)
        node.start_sharing()
        await node.wait_for_shared_key()
        made = node.create("a", 1)
        assert other.verify("a", made) is None
        await asyncio.sleep(2)
        assert other.verify("a", made) == 1
        board.gets = 0
        for number in range(1000):
            assert other.verify("a", f"{number:08x}-1-{'0' * 32}") is None
            await asyncio.sleep(0.01)
        assert board.gets <= 15
        await close([node, other])

    in_virtual_time(main())


def test_a_board_that_is_away_delays_no_start() -> None:
    """A node serves while the log is down; it takes the key when it is back."""

    async def main() -> None:
        board = FakeSharedStore()
        board.is_away = True
        nodes = [NonceSigner(board), NonceSigner(board)]
        for node in nodes:
            node.start_sharing()
        began = asyncio.get_running_loop().time()
        await nodes[0].wait_for_shared_key()
        assert asyncio.get_running_loop().time() - began <= nonces.FIRST_POLL_TIMEOUT_SECONDS + 0.1
        board.is_away = False
        await asyncio.sleep(60)
        assert agree(nodes)
        await close(nodes)
        await close(nodes)

    in_virtual_time(main())


async def test_a_process_of_its_own_asks_nobody() -> None:
    """memory:// has no other nodes."""
    node = NonceSigner(MemorySharedStore(unix_ms))
    node.start_sharing()
    await node.wait_for_shared_key()
    assert node._task is None
    await node.close()


@pytest.mark.parametrize(
    "nonce", ["", "-", "1", "a" * 2000, "zzzzzzzz-1-" + "0" * 32, "\x00", "00000000-1-é"]
)
def test_what_nobody_made(nonce: str) -> None:
    """Anything may come."""
    assert NonceSigner(MemorySharedStore(unix_ms)).verify("a", nonce) is None


def test_a_nonce_is_of_one_stream_and_one_question() -> None:
    """Or one client could answer for another, or today for tomorrow."""
    node = NonceSigner(MemorySharedStore(unix_ms))
    made = node.create("a", 12)
    assert node.verify("a", made) == 12
    assert node.verify("b", made) is None
    assert node.verify("a", made.replace("-12-", "-13-")) is None
    assert NonceSigner(MemorySharedStore(unix_ms)).verify("a", made) is None


async def test_the_first_look_is_waited_for() -> None:
    """Clients come right after the start, and are asked with the key that others know."""
    board = FakeSharedStore()
    first, second = NonceSigner(board), NonceSigner(board)
    first.start_sharing()
    await first.wait_for_shared_key()
    second.start_sharing()
    await second.wait_for_shared_key()
    await eventually(lambda: agree([first, second]))
    await close([first, second])
