"""The agent of a local partition: it serves what the host has enabled, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.constants import GUEST_AGENT, HEARTBEAT
from hvsock.errors import LostError, NotReadyError, RefusedError, UsageError
from hvsock.fabric import client
from hvsock.services import agent as module
from hvsock.services.agent import Agent, GuestAgent, Question, Report, Running, running
from hvsock.services.agenthood import Surroundings
from hvsock.services.connecting import connect
from hvsock.services.policy import Policy
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle, fabric
from tests.services.inventory import Inventory, Query

HALVES = {
    HEARTBEAT.name: "hvsock.services.predefined.heartbeat.protocol:Heartbeat",
    GUEST_AGENT.name: "hvsock.services.agent:GuestAgent",
}
PATIENCE_SECONDS = 20.0


@dataclass
class World:
    """A fabric with a guest.

    Attributes:
        fabric, guest: what there is.
        folder: for the agent's state.
    """

    fabric: EmbeddedFabric
    guest: PartitionHandle
    folder: Path

    def agent(self, policy: Policy = Policy(), **settings: Any) -> Agent:  # noqa: B008
        """The guest's agent, of two services."""
        surroundings = Surroundings(own_machine=False, state_folder=str(self.folder), policy=policy)
        return Agent(surroundings, self.guest.folder, **{"halves": HALVES, **settings})

    def asking(self) -> Any:
        """The agent as its host sees it."""
        return connect(GuestAgent, "web01", partition=self.fabric.host.folder)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a test."""

        async def limited() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await test()

        asyncio.run(limited())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose agent looks often."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    with fabric() as made:
        yield World(made, made.create_partition("web01"), tmp_path)


def states(report: Report) -> dict[str, str]:
    """The states by name."""
    return {one.name: one.state for one in report.services}


async def until(agent: Agent, name: str, state: Running) -> None:
    """Wait until a service is in a state."""
    while states(agent.report())[name] != state:
        await asyncio.sleep(0.01)


def test_it_serves_what_is_enabled(world: World) -> None:
    async def test() -> None:
        async with running(world.agent(), world.guest.folder), world.asking() as agent:
            report = await agent.report(Question())
            assert states(report) == dict.fromkeys(HALVES, Running.RUNNING)
            assert not report.own_machine
            assert all(one.id for one in report.services)

    world.run(test)


def test_what_the_host_disables_ends_with_its_connections(world: World) -> None:
    async def test() -> None:
        async with running(world.agent(), world.guest.folder) as agent, world.asking() as remote:
            await remote.report(Question())
            world.fabric.registry.set_enabled(GUEST_AGENT.name, False, world.guest.id)
            await until(agent, GUEST_AGENT.name, Running.OFF_BY_HOST)
            with pytest.raises((LostError, OSError)):
                await remote.report(Question(), timeout=0.3)
            assert states(agent.report())[HEARTBEAT.name] == Running.RUNNING
            world.fabric.registry.set_enabled(GUEST_AGENT.name, True, world.guest.id)
            await remote.report(Question())

    world.run(test)


def test_a_broker_that_is_started_again_changes_nothing(world: World) -> None:
    async def test() -> None:
        async with running(world.agent(), world.guest.folder), world.asking() as remote:
            await remote.report(Question())
            await asyncio.to_thread(world.fabric.restart)
            await remote.report(Question())
            async with world.asking() as another:
                await another.report(Question())

    world.run(test)


def test_what_the_guest_has_off(world: World) -> None:
    async def test() -> None:
        async with running(world.agent(off=[HEARTBEAT.name]), world.guest.folder), world.asking() as remote:
            assert states(await remote.report(Question()))[HEARTBEAT.name] == Running.OFF_BY_GUEST

    world.run(test)
    with pytest.raises(UsageError, match="no service 'Heartbreak'; there are: Guest Agent, Heartbeat"):
        world.agent(off=["Heartbreak"])


def test_what_its_policy_denies(world: World) -> None:
    async def test() -> None:
        agent = world.agent(Policy.of(deny=["agent.*"]))
        async with running(agent, world.guest.folder), world.asking() as remote:
            with pytest.raises(RefusedError, match=r"agent\.report is denied"):
                await remote.report(Question())

    world.run(test)


def test_what_its_host_denies(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused as soon as the agent has looked, on connections from before, too; and allowed again later."""

    def deny(denied: frozenset[str] | None) -> None:
        world.fabric.registry.change_settings(GUEST_AGENT.name, world.guest.id, denied=denied)

    async def until_it(is_denied: bool, asking: GuestAgent) -> None:
        said = ""
        while bool(said) != is_denied:
            said = ""
            with contextlib.suppress(LostError):  # as the connection ends then
                try:
                    await asking.report(Question())
                except RefusedError as error:
                    said = str(error)
        assert not said or re.match(r"agent\.report is denied by the policy .* \(hvsock integration deny\)", said)

    async def test() -> None:
        agent = world.agent(Policy.of(deny=["heartbeat.beat"]))
        async with running(agent, world.guest.folder), world.asking() as asking:
            await until_it(False, asking)
            deny(frozenset({"agent.*"}))
            await until_it(True, asking)
            assert states(agent.report()) == dict.fromkeys(HALVES, Running.RUNNING)
            deny(frozenset({"agent.other"}))
            await until_it(False, asking)
            deny(None)
            await until_it(False, asking)

    caplog.set_level("INFO")
    world.run(test)
    assert sum(f"{HEARTBEAT.name} is served" in line for line in caplog.messages) == 1
    assert any("agent.report of parent: denied by policy" in line for line in caplog.messages)


def test_two_in_one_partition(world: World) -> None:
    """The second says what is in its way, and serves once the first is gone."""

    async def test() -> None:
        second = world.agent()
        first = running(world.agent(), world.guest.folder)
        await first.__aenter__()
        async with running(second, world.guest.folder):
            try:
                (one, other) = second.report().services
                assert {one.state, other.state} == {Running.FAILED}
                assert one.reason.endswith(
                    "in use in this partition; another program serves it, as a second agent does: end one of them"
                )
            finally:
                await first.__aexit__(None, None, None)
            await until(second, GUEST_AGENT.name, Running.RUNNING)

    world.run(test)


def test_without_a_broker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.1)
    folder = str(world.folder / "nothing")

    async def test() -> None:
        with pytest.raises(NotReadyError, match="no broker answers"):
            async with running(world.agent(), folder):
                pass

    world.run(test)


def test_a_service_of_ones_own(world: World) -> None:
    """The table of guest halves is an argument."""
    world.fabric.register("Inventory", Inventory.ID)

    async def test() -> None:
        halves = {"Inventory": "tests.services.test_agent:InventoryHere"}
        async with (
            running(world.agent(halves=halves), world.guest.folder),
            connect(Inventory, "web01", partition=world.fabric.host.folder) as inventory,
        ):
            assert (await inventory.count(Query("here"))).name == "here"

    world.run(test)


class InventoryHere(Inventory):
    """As the agent makes it."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__()
        self.surroundings = surroundings


def test_a_half_that_cannot_be_imported_leaves_the_others_alone(world: World) -> None:
    async def test() -> None:
        agent = world.agent(halves={**HALVES, HEARTBEAT.name: "hvsock.services.nowhere:Nothing"})
        async with running(agent, world.guest.folder), world.asking() as remote:
            found = {one.name: one for one in (await remote.report(Question())).services}
            assert found[HEARTBEAT.name].state == Running.FAILED
            assert "nowhere" in found[HEARTBEAT.name].reason
            assert found[GUEST_AGENT.name].state == Running.RUNNING

    world.run(test)
