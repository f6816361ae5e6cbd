"""The heartbeat over a local fabric: guests that are well, that end, and that mean harm."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.constants import HEARTBEAT
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.connecting import connect
from hvsock.services.predefined.heartbeat.applications import ApplicationState, telling
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.services.predefined.heartbeat.protocol import Beat, Heartbeat, Pulse
from hvsock.services.predefined.heartbeat.status import Health, Status
from hvsock.services.service import Service, exchange
from hvsock.services.serving import raw_service, serve
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import EmbeddedFabric, fabric

FAST = 0.02
"""Seconds between two beats."""


def surroundings(folder: Path) -> Surroundings:
    return Surroundings(own_machine=False, state_folder=str(folder))


async def become(monitor: Monitor, good: Callable[[Health], bool], vm: str = "web01") -> Health:
    async with asyncio.timeout(20):
        await monitor.wait(lambda: good(monitor.health(vm)))
    return monitor.health(vm)


def is_(status: Status) -> Callable[[Health], bool]:
    return lambda health: health.primary is status


def test_a_guest_that_is_well(tmp_path: Path) -> None:
    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with (
            serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder),
            Monitor(["web01"], partition=made.host.folder, period=FAST) as monitor,
        ):
            found = await become(monitor, is_(Status.OK))
            assert (found.secondary, found.version, found.reason) == (Status.OK, 2, "")
            assert found.application_state is ApplicationState.UNKNOWN
            assert found.answered is not None
            assert found.round_trip is not None
            with telling("database", str(tmp_path), ApplicationState.CRITICAL) as teller:
                found = await become(monitor, lambda one: one.secondary is Status.APPLICATION_CRITICAL_STATE)
                assert found.primary is Status.OK
                teller.tell(ApplicationState.HEALTHY)
                await become(monitor, lambda one: one.application_state is ApplicationState.HEALTHY)
            await become(monitor, lambda one: one.application_state is ApplicationState.UNKNOWN)

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_it_recovers_when_the_guest_is_served_again(tmp_path: Path) -> None:
    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with Monitor(["web01"], partition=made.host.folder, period=FAST) as monitor:
            found = await become(monitor, lambda one: "hvsock agent" in one.reason)
            assert (found.primary, found.secondary) == (Status.NO_CONTACT, Status.COMMUNICATION_FAILED)
            for _ in range(3):
                async with serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder):
                    await become(monitor, lambda one: one.primary is Status.OK and not one.reason)
                    before = monitor.connections("web01")
                async with serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder):
                    await monitor.wait(lambda: monitor.connections("web01") > before)  # noqa: B023

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_it_goes_on_through_the_broker_and_begins_again_after_it(tmp_path: Path) -> None:
    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with Monitor(["web01"], partition=made.host.folder, period=FAST) as monitor:
            async with serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder):
                await become(monitor, is_(Status.OK))
                await asyncio.to_thread(made.restart)
                before = monitor.health("web01")
                assert before.answered is not None
                await become(monitor, lambda one: one.answered is not None and not one.reason)
                assert monitor.connections("web01") == 1
            async with serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder):
                await monitor.wait(lambda: monitor.connections("web01") > 1)
                await become(monitor, lambda one: one.primary is Status.OK and not one.reason)

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_an_older_guest_is_degraded(tmp_path: Path) -> None:
    class Newer(Heartbeat, name=HEARTBEAT.name, port=HEARTBEAT.port, short="heartbeat", versions=(1, 2, 3)):
        """A host that speaks more; its name on the wire is the guest's."""

    Newer.WIRE = Heartbeat.WIRE

    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with (
            serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder),
            Monitor(["web01"], partition=made.host.folder, period=FAST, service=Newer) as monitor,
        ):
            found = await become(monitor, is_(Status.DEGRADED))
            assert found.reason == "it speaks version 2, and this side up to 3"

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_without_a_version_in_common(tmp_path: Path) -> None:
    class Later(Heartbeat, name=HEARTBEAT.name, port=HEARTBEAT.port, short="heartbeat", versions=(9,)):
        """A guest of another time."""

    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with (
            serve(Later(surroundings(tmp_path)), bind="parent", partition=folder),
            Monitor(["web01"], partition=made.host.folder, period=FAST) as monitor,
        ):
            found = await become(monitor, is_(Status.NON_RECOVERABLE))
            assert found.secondary is Status.PROTOCOL_MISMATCH
            assert "9" in found.reason

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_a_guest_of_version_1_tells_no_application_state(tmp_path: Path) -> None:
    class Older(Heartbeat, name=HEARTBEAT.name, port=HEARTBEAT.port, short="heartbeat", versions=(1,)):
        """A host of another time."""

    Older.WIRE = Heartbeat.WIRE

    async def beats() -> AsyncIterator[Beat]:
        yield Beat(2**64 - 1)

    async def run(made: EmbeddedFabric, folder: str) -> None:
        with telling("database", str(tmp_path), ApplicationState.CRITICAL):
            async with (
                serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=folder),
                connect(Older, "web01", partition=made.host.folder) as guest,
            ):
                assert [one async for one in guest.beat(beats())] == [Pulse(0, ApplicationState.UNKNOWN)]

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


@dataclass
class Beats:
    items: list[Beat]


class WrongSequence(Heartbeat):
    @exchange
    async def beat(self, caller: Caller, beats: AsyncIterator[Beat]) -> AsyncIterator[Pulse]:
        async for one in beats:
            yield Pulse(one.sequence + 2)


class Ahead(Heartbeat):
    @exchange
    async def beat(self, caller: Caller, beats: AsyncIterator[Beat]) -> AsyncIterator[Pulse]:
        number = 1
        while True:  # a flood
            number += 1
            yield Pulse(number)


class Giant(Service, name=HEARTBEAT.name, port=HEARTBEAT.port, short="heartbeat", versions=(1, 2)):
    """Answers of a megabyte."""

    @exchange
    async def beat(self, caller: Caller, beats: AsyncIterator[Beat]) -> AsyncIterator[Beats]:
        async for _ in beats:
            yield Beats([Beat(1)] * 4096)


class Mute(Heartbeat):
    @exchange
    async def beat(self, caller: Caller, beats: AsyncIterator[Beat]) -> AsyncIterator[Pulse]:
        async for one in beats:
            if one.sequence == 0:
                yield Pulse(1)


Giant.WIRE = Heartbeat.WIRE


class Nothing(Service, name=HEARTBEAT.name, port=HEARTBEAT.port, short="heartbeat", versions=(1, 2)):
    """Knows no beat."""


Nothing.WIRE = Heartbeat.WIRE


@pytest.mark.parametrize(
    ("guest", "reason"),
    [
        (WrongSequence, "where"),
        (Ahead, "answer"),
        (Giant, "is the most"),
        (Nothing, "of another version"),
    ],
)
def test_a_guest_that_breaks_the_protocol(tmp_path: Path, guest: type[Service], reason: str) -> None:
    """And the one beside it is watched as before."""
    bad = guest(surroundings(tmp_path)) if issubclass(guest, Heartbeat) else guest()

    async def run(made: EmbeddedFabric, folder: str, other: str) -> None:
        async with (
            serve(bad, bind="parent", partition=folder),
            serve(Heartbeat(surroundings(tmp_path)), bind="parent", partition=other),
            Monitor(["bad", "good"], partition=made.host.folder, period=FAST) as monitor,
        ):
            found = await become(monitor, is_(Status.NON_RECOVERABLE), "bad")
            assert found.secondary is Status.PROTOCOL_MISMATCH
            assert reason in found.reason
            assert (await become(monitor, is_(Status.OK), "good")).reason == ""

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("bad").folder, made.create_partition("good").folder))


def test_a_guest_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is dropped after a time, and another made."""
    monkeypatch.setattr("hvsock.services.predefined.heartbeat.monitor.SILENT_SECONDS", 0.1)

    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with (
            serve(Mute(surroundings(tmp_path)), bind="parent", partition=folder),
            Monitor(["web01"], partition=made.host.folder, period=FAST, paused=paused.__contains__) as monitor,
        ):
            found = await become(monitor, lambda one: "no answer for" in one.reason)
            assert found.primary is Status.NO_CONTACT
            paused.append("web01")
            assert monitor.health("web01").primary is Status.PAUSED
            await become(monitor, lambda one: monitor.connections("web01") >= 3)

    paused: list[str] = []

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))


def test_a_guest_that_speaks_no_http2_and_never_ends() -> None:
    @raw_service(HEARTBEAT.name, port=HEARTBEAT.port)
    async def noise(caller: Caller, connection: socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.sock_sendall(connection, bytes(65536))

    async def run(made: EmbeddedFabric, folder: str) -> None:
        async with (
            serve(noise, bind="parent", partition=folder),
            Monitor(["web01"], partition=made.host.folder, period=FAST) as monitor,
        ):
            await monitor.wait_tried()
            assert monitor.health("web01").primary in (Status.NO_CONTACT, Status.NON_RECOVERABLE)

    with fabric() as made:
        asyncio.run(run(made, made.create_partition("web01").folder))
