"""Conversations on sockets: what comes as a time-out ends is not lost."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.services.powershell import conversing
from hvsock.services.powershell.admission import Admission, BrokerSide
from hvsock.services.powershell.conversing import converse
from hvsock.services.powershell.handshake import Agreement, BrokerClient, Credentials
from tests.services.powershell.rows import TOKEN, wide

PAUSE_SECONDS = 0.05


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> float:
    """A pause that is short, and not too short for a loop that has nothing else to do."""
    monkeypatch.setattr(conversing, "PAUSE_SECONDS", PAUSE_SECONDS)
    return PAUSE_SECONDS


def test_what_comes_while_the_loop_is_busy_is_no_pause(pause: float) -> None:
    """A text in two parts, the second of which comes in time to a loop that looks too late."""

    async def main() -> None:
        near, far = hvsock.socketpair()
        with near, far:
            near.setblocking(False)
            side = BrokerSide()

            async def decide() -> None:
                side.admit(TOKEN)

            loop = asyncio.get_running_loop()
            answering = asyncio.create_task(converse(near, side, decide))

            async def tell(*parts: bytes) -> None:
                """Say the parts of a message; the loop is kept busy between them for longer than a pause."""
                far.send(parts[0])
                for part in parts[1:]:
                    turn = side.turn
                    while side.turn is turn:  # until the part before was received, and the pause has begun
                        await asyncio.sleep(0)
                    far.send(part)
                    time.sleep(2 * pause)

            async def hear(word: bytes) -> None:
                assert await loop.run_in_executor(None, far.recv, len(word)) == word

            await tell(b"VERSION")
            await hear(b"VERSION_2")
            await tell(b"VERSION_2")
            await hear(b"PASS")
            for text in ("corp.example", "anna"):
                await tell(wide(text)[:5], wide(text)[5:])
                await hear(b"PASS")
            await tell(b"NONEMPTYPW")
            await hear(b"PASS")
            await tell(*(wide("secret")[place : place + 3] for place in (0, 3, 6, 9)))
            await hear(b"CONF")
            await tell(b"EMPTYCF")
            await hear(b"TOKEN " + TOKEN.encode())
            await tell(b"PASS")
            assert await answering == Admission("", older=False)
            assert side.claim == Credentials("anna", "secret", "corp.example")

    asyncio.run(main())


def test_both_sides_with_pauses_that_are_always_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that came is lost, however often waiting for it ends at the same time."""
    monkeypatch.setattr(conversing, "PAUSE_SECONDS", 0.0)

    async def main() -> None:
        for _ in range(50):
            near, far = hvsock.socketpair()
            with near, far:
                near.setblocking(False)
                far.setblocking(False)
                side = BrokerSide()

                async def decide(side: BrokerSide = side) -> None:
                    side.admit(TOKEN)

                client = BrokerClient(Credentials("anna", "secret"))
                found = await asyncio.gather(converse(far, client), converse(near, side, decide))
                assert tuple(found) == (Agreement(TOKEN), Admission("", older=False))

    asyncio.run(main())
