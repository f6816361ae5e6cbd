"""Sessions opened over a fabric, with a scripted guest: every row, and every refusal within its time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.addresses import ServiceId
from hvsock.constants import DIRECT, VM_SESSION_SERVICE_2
from hvsock.errors import HvsockError, LostError, NotFoundError, ProtocolError, UsageError
from hvsock.services.caller import Caller
from hvsock.services.powershell import brokering
from hvsock.services.powershell.brokering import open_session
from hvsock.services.powershell.client import connect
from hvsock.services.powershell.handshake import (
    ConfigurationError,
    CredentialError,
    Credentials,
    OlderVersionError,
    SilenceError,
    TokenError,
    VersionError,
)
from hvsock.services.serving import RawService, serve
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle, fabric
from tests.services.powershell.rows import (
    BYTES,
    GREETING,
    PROBE,
    SESSION,
    TOKEN,
    WHOLE,
    Row,
    Script,
    ending,
    login,
    wide,
)
from tests.services.powershell.scripted import ScriptedBroker, ScriptedSession

ANNA = Credentials("anna", "secret")
PATIENCE_SECONDS = 30.0
SPOKEN = Row(b"<Data />", b"<DataAck />\n")
"""What stands for PSRP here."""
BROKER = (*GREETING, *login(), *ending())


@dataclass
class World:
    """A fabric with a scripted guest."""

    fabric: EmbeddedFabric
    guest: PartitionHandle
    broker: ScriptedBroker
    session: ScriptedSession

    async def opened(self, credentials: Credentials | None = ANNA, **arguments: Any) -> Any:
        """Open a session."""
        return await open_session("web01", credentials, partition=self.fabric.host.folder, **arguments)

    async def speak(self, **arguments: Any) -> None:
        """Open a session, and speak on it."""
        with await self.opened(**arguments) as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, SPOKEN.said)
            heard = b""
            while len(heard) < len(SPOKEN.answer):
                heard += await loop.sock_recv(sock, 100)
            assert heard == SPOKEN.answer

    def check(self) -> None:
        """All scripts were played, and the client has said what is in them, and nothing else."""
        for one in (self.broker.playing, self.session.playing):
            assert (one.scripts, one.strange) == ([], [])
            for script in one.played:
                assert script.said == script.expected()


@asynccontextmanager
async def a_world(broker: Sequence[Script] = (), session: Sequence[Script] = ()) -> AsyncIterator[World]:
    """A guest with scripts for the connections of either service."""
    with fabric() as made:
        guest = made.create_partition("web01")
        services = ScriptedBroker(*broker), ScriptedSession(*session)
        async with serve(*services, bind="parent", partition=guest.folder), asyncio.timeout(PATIENCE_SECONDS):
            yield World(made, guest, *services)


def run(
    test: Callable[[World], Coroutine[Any, Any, None]], broker: Sequence[Script], session: Sequence[Script] = ()
) -> None:
    """Run a test in a world."""

    async def main() -> None:
        async with a_world(broker, session) as world:
            await test(world)

    asyncio.run(main())


@pytest.mark.parametrize("cuts", [WHOLE, BYTES, (3, 1, 2)], ids=["whole", "bytes", "cuts"])
@pytest.mark.parametrize(
    ("broker", "session", "arguments"),
    [
        pytest.param([BROKER], SESSION, {}, id="password"),
        pytest.param([BROKER], SESSION, {"require_authentication": True}, id="authentication required"),
        pytest.param(
            [(*GREETING, *login(), *ending("JEA"))], SESSION, {"configuration": "JEA"}, id="configuration"
        ),
        pytest.param([PROBE, (*login(last=b"PASS"), Row(b"PASS"))], (), {}, id="older"),
        pytest.param([PROBE, (*login(), Row(b"EMPTYCF"))], (), {}, id="older, with CONF"),
    ],
)
def test_a_session(broker: Any, session: Any, arguments: dict[str, Any], cuts: Sequence[int]) -> None:
    async def main(world: World) -> None:
        await world.speak(**arguments)
        world.check()

    run(main, [Script(one, cuts) for one in broker], [Script((*session, SPOKEN), cuts)])


def test_a_token_that_ends_with_a_pause() -> None:
    """One without padding, from a broker that goes on listening."""
    token = "abcd" * 12

    async def main(world: World) -> None:
        await world.speak()
        world.check()

    session = (*GREETING, Row(b"TOKEN " + token.encode(), b"PASS"), SPOKEN)
    run(main, [Script((*GREETING, *login(), *ending(token=token)), end=False)], [Script(session)])


def test_a_container_has_no_broker() -> None:
    """The connection is made with HVSOCKET_CONTAINER_PASSTHRU, and PSRP is what is said first."""

    async def main() -> None:
        with fabric() as made:
            box = made.create_partition("box", parent=made.create_partition("utility").name, kind="container")
            service = ScriptedSession(Script([SPOKEN]))
            async with serve(service, bind="parent", partition=box.folder), asyncio.timeout(PATIENCE_SECONDS):
                world = World(made, box, ScriptedBroker(), service)
                with pytest.raises(OSError, match="no child of"):
                    await connected(("box", VM_SESSION_SERVICE_2.id), partition=made.host.folder)
                with await open_session("box", None, container=True, partition=made.host.folder) as sock:
                    await asyncio.get_running_loop().sock_sendall(sock, SPOKEN.said)
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == SPOKEN.answer
                world.check()

    asyncio.run(main())


REFUSALS: dict[str, tuple[Sequence[Sequence[Row]], Sequence[Row], dict[str, Any], type[HvsockError]]] = {
    "wrong password": ([(*GREETING, *login(last=b"FAIL"), Row(b"FAIL"))], (), {}, CredentialError),
    "wrong password, older": ([PROBE, (*login(last=b"FAIL"), Row(b"FAIL"))], (), {}, CredentialError),
    "refused version": ([(GREETING[0], Row(b"VERSION_2", b"FAIL"))], (), {}, VersionError),
    "refused version of the session": ([BROKER], (GREETING[0], Row(b"VERSION_2", b"FAIL")), {}, VersionError),
    "expired token": (
        [BROKER],
        (*GREETING, Row(b"TOKEN " + TOKEN.encode(), b"FAIL")),
        {},
        TokenError,
    ),
    "no configuration": (
        [(*GREETING, *login(), Row(b"NONEMPTYCF", b"PASS"), Row(wide("JEA"), b"FAIL"))],
        (),
        {"configuration": "JEA"},
        ConfigurationError,
    ),
    "older, and authentication required": ([PROBE], (), {"require_authentication": True}, OlderVersionError),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal(name: str) -> None:
    broker, session, arguments, kind = REFUSALS[name]

    async def main(world: World) -> None:
        with pytest.raises(kind) as caught:
            await world.opened(**arguments)
        assert type(caught.value) is kind
        assert TOKEN not in str(caught.value)
        while world.session.playing.scripts and session:  # a connection that ended may be noticed later
            await asyncio.sleep(0)
        world.check() if session else None

    run(main, [Script(one) for one in broker], [Script(session)] if session else [])


def test_garbage_on_either_connection_and_an_end() -> None:
    """Each step is tried in test_handshake; here the error comes through, and the socket is closed."""

    async def main(world: World) -> None:
        for _ in range(2):
            with pytest.raises(ProtocolError):
                await world.opened()
        for _ in range(2):
            with pytest.raises(LostError):
                await world.opened()

    broker = [(Row(b"VERSION", b"<html>"),), BROKER, (Row(b"VERSION"),), BROKER]
    session = [(Row(b"VERSION", b"SSH-2.0"),), (GREETING[0], Row(b"VERSION_2", b"PA"))]
    run(main, [Script(one) for one in broker], [Script(one) for one in session])


def test_silence_at_every_step() -> None:
    """Before each answer, and in the midst of it; the error says what is missing."""

    async def silent(made: EmbeddedFabric, name: str, broker: Sequence[Row], session: Sequence[Row]) -> None:
        services = ScriptedBroker(Script(broker, end=False)), ScriptedSession(Script(session, end=False))
        async with serve(*services, bind="parent", partition=made.create_partition(name).folder):
            with pytest.raises(
                SilenceError, match=rf"^{name} did not answer within 2 s; it owes the (answer|token)"
            ):
                await open_session(name, ANNA, timeout=2, partition=made.host.folder)

    def cut(rows: Sequence[Row], number: int, part: int) -> list[Row]:
        return [*rows[:number], rows[number]._replace(answer=rows[number].answer[:part])]

    async def main() -> None:
        steps = [
            *((cut(BROKER, step, part), ()) for step, row in enumerate(BROKER) if row.answer for part in (0, 1)),
            *((BROKER, cut(SESSION, step, part)) for step in range(len(SESSION)) for part in (0, 1)),
        ]
        with fabric() as made:
            await asyncio.gather(*(silent(made, f"web{number}", *step) for number, step in enumerate(steps)))

    asyncio.run(main())


class SilentDirect(RawService, name=DIRECT.name, port=DIRECT.port):
    """A Direct that hands nothing over."""

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Hear everything, and say nothing."""
        while await asyncio.get_running_loop().sock_recv(connection, 4096):
            pass


def test_a_direct_that_is_silent_about_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session may take is the time for that, too."""

    async def main() -> None:
        with fabric() as made:
            monkeypatch.setenv("HVSOCK_DIR", made.folder)
            guest = made.create_partition("web01")
            async with (
                serve(SilentDirect(), bind="parent", partition=guest.folder),
                asyncio.timeout(PATIENCE_SECONDS),
            ):
                with pytest.raises(SilenceError, match=r"did not answer within 0.2 s; it owes the hand-over"):
                    async with connect("web01", partition=made.host.folder, timeout=0.2):
                        pass

    asyncio.run(main())


def test_who_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokering, "STARTING_SECONDS", 0.05)

    async def main() -> None:
        with fabric() as made:
            guest = made.create_partition("web01")

            async def opened(vm: str = "web01") -> None:
                await open_session(vm, ANNA, partition=made.host.folder)

            with pytest.raises(NotFoundError, match="web02"):
                await opened("web02")
            with pytest.raises(ConnectionRefusedError):
                await opened()
            async with serve(ScriptedBroker(Script(BROKER)), bind="parent", partition=guest.folder):
                with pytest.raises(ConnectionRefusedError):
                    await opened()

    asyncio.run(main())


def test_a_session_service_that_starts_late() -> None:
    """As that of the original does, which is started for the session."""

    async def main() -> None:
        with fabric() as made:
            guest = made.create_partition("web01")
            broker = ScriptedBroker(Script(BROKER))
            session = ScriptedSession(Script((*SESSION, SPOKEN)))
            async with serve(broker, bind="parent", partition=guest.folder), asyncio.timeout(PATIENCE_SECONDS):
                opening = asyncio.create_task(World(made, guest, broker, session).speak())
                while not broker.playing.played or broker.playing.played[0].said != Script(BROKER).expected():
                    await asyncio.sleep(0)
                async with serve(session, bind="parent", partition=guest.folder):
                    await opening

    asyncio.run(main())


@pytest.mark.parametrize(
    ("credentials", "arguments"),
    [(None, {}), (ANNA, {"container": True}), (None, {"container": True, "configuration": "JEA"})],
)
def test_arguments_that_do_not_go_together(credentials: Credentials | None, arguments: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="needs credentials"):
            await open_session("web01", credentials, **arguments)

    asyncio.run(main())


def test_a_session_that_is_given_up_closes_its_connection() -> None:
    async def main(world: World) -> None:
        opening = asyncio.create_task(world.opened())
        playing = world.session.playing
        while not playing.played or not playing.played[0].said:
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    run(main, [Script(BROKER)], [Script([Row(b"VERSION")], end=False)])


def test_the_services_are_those_of_the_registry() -> None:
    with fabric() as made:
        entry = made.registry.get(ServiceId(VM_SESSION_SERVICE_2.id))
        assert entry is not None
        assert entry.inbox
        assert entry.name == VM_SESSION_SERVICE_2.name
