"""What a lying guest can do to every service alike: speak other versions only, answer too much, answer nonsense.

What is a service's own to lie about is in the tests of that service.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import pytest

assert sys.platform == "linux"

from hvsock.constants import (
    KEY_VALUE_PAIR_EXCHANGE,
    SHUTDOWN,
    TIME_SYNCHRONIZATION,
    VSS,
)
from hvsock.errors import NegotiationError, ProtocolError
from hvsock.services.caller import Caller
from hvsock.services.predefined.direct.handover import GuestIdentity
from hvsock.services.predefined.kvp.host import exchange as kvp_exchange
from hvsock.services.predefined.kvp.interface import KeyQuestion, KeyValueExchange, PoolQuestion
from hvsock.services.predefined.shutdown import shut_down
from hvsock.services.predefined.shutdown.interface import Order, ShutdownService
from hvsock.services.predefined.timesync.host import synchronize
from hvsock.services.predefined.timesync.protocol import Sample, TimeSynchronization
from hvsock.services.predefined.vss.host import frozen
from hvsock.services.predefined.vss.interface import Request, Vss
from hvsock.services.service import Service, call, download, exchange
from hvsock.services.serving import serve
from hvsock.services.types import Limit
from hvsock.testing.fabric import fabric

MIB: Final = 1 << 20
PATIENCE: Final = 30.0
"""Seconds; what is contained ends in some milliseconds."""


@dataclass(frozen=True, slots=True)
class Anything:
    """Bytes where a message is due.

    Attributes:
        data: of a field with the number 1.
    """

    data: Annotated[bytes, Limit(8 * MIB)]


TOO_MUCH: Final = Anything(bytes(5 * MIB))
NONSENSE: Final = Anything(b"\xff" * 40)
MOST: Final = 16 * MIB


class TimeLiar(
    Service, name=TIME_SYNCHRONIZATION.name, port=TIME_SYNCHRONIZATION.port, short="timesync", versions=(1,)
):
    def __init__(self, answer: Anything) -> None:
        self._answer = answer

    @exchange(max_bytes=MOST)
    async def synchronize(self, caller: Caller, samples: AsyncIterator[Sample]) -> AsyncIterator[Anything]:
        async for _ in samples:
            yield self._answer


class KvpLiar(Service, name=KEY_VALUE_PAIR_EXCHANGE.name, port=KEY_VALUE_PAIR_EXCHANGE.port, short="kvp"):
    def __init__(self, answer: Anything) -> None:
        self._answer = answer

    @call(max_bytes=MOST)
    async def get(self, caller: Caller, question: KeyQuestion) -> Anything:
        return self._answer

    @download(max_bytes=MOST)
    async def enumerate(self, caller: Caller, question: PoolQuestion) -> AsyncIterator[Anything]:
        yield self._answer


class ShutdownLiar(Service, name=SHUTDOWN.name, port=SHUTDOWN.port, short="shutdown"):
    def __init__(self, answer: Anything) -> None:
        self._answer = answer

    @call(max_bytes=MOST)
    async def order(self, caller: Caller, order: Order) -> Anything:
        return self._answer


class VssLiar(Service, name=VSS.name, port=VSS.port):
    def __init__(self, answer: Anything) -> None:
        self._answer = answer

    @exchange(max_bytes=MOST)
    async def freeze(self, caller: Caller, questions: AsyncIterator[Request]) -> AsyncIterator[Anything]:
        async for _ in questions:
            yield self._answer


async def ask_time(host: str) -> None:
    await synchronize("web01", partition=host)


async def ask_kvp(host: str) -> None:
    async with kvp_exchange("web01", partition=host, introduce=False) as side:
        await side.get("a")


async def list_kvp(host: str) -> None:
    async with kvp_exchange("web01", partition=host, introduce=False) as side:
        await side.items()


async def ask_shutdown(host: str) -> None:
    await shut_down("web01", partition=host)


async def ask_vss(host: str) -> None:
    async with frozen("web01", partition=host):
        raise AssertionError("it was never frozen")


Ask = Callable[[str], Awaitable[None]]
LIARS: list[tuple[type[Any], type[Service], Ask]] = [
    (TimeLiar, TimeSynchronization, ask_time),
    (KvpLiar, KeyValueExchange, ask_kvp),
    (KvpLiar, KeyValueExchange, list_kvp),
    (ShutdownLiar, ShutdownService, ask_shutdown),
    (VssLiar, Vss, ask_vss),
]


def asked(guest: Service, ask: Ask, error: type[Exception]) -> str:
    """What the host says when it asks `guest`."""

    async def run(host: str, folder: str) -> str:
        async with asyncio.timeout(PATIENCE), serve(guest, bind="parent", partition=folder):
            with pytest.raises(error) as caught:
                await ask(host)
        return str(caught.value)

    with fabric() as made:
        return asyncio.run(run(made.host.folder, made.create_partition("web01").folder))


@pytest.mark.parametrize(("liar", "service", "ask"), LIARS)
def test_answers_that_are_too_long_or_none(liar: type[Any], service: type[Service], ask: Ask) -> None:
    liar.WIRE = service.WIRE
    assert "the most" in asked(liar(TOO_MUCH), ask, ProtocolError)
    assert asked(liar(NONSENSE), ask, ProtocolError).isprintable()


@pytest.mark.parametrize(("liar", "service", "ask"), LIARS)
def test_versions_that_this_side_does_not_speak(
    liar: type[Any], service: type[Service], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar.WIRE = service.WIRE
    monkeypatch.setattr(liar, "VERSIONS", (9,))
    assert "9" in asked(liar(NONSENSE), ask, NegotiationError)


def test_a_hand_over_of_another_version() -> None:
    """Direct has no negotiation; its first line has the version."""
    with pytest.raises(ProtocolError, match="of another version"):
        GuestIdentity.parse(b"HVSOCK-DIRECT 2 kept root ssh-ed25519 AAAA\n")
