"""`hvsock agent`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from typing import Any

import click

from hvsock import transport
from hvsock.cli.outcome import conclude, say
from hvsock.errors import NotFoundError, UsageError
from hvsock.fabric import paths
from hvsock.notify import notify
from hvsock.services import loading
from hvsock.services.agenthood import Surroundings, default_state_folder
from hvsock.services.policy import Policy
from hvsock.services.predefined.direct import keeping
from hvsock.services.supervising import Child, supervise
from hvsock.transport import Transport

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")


@click.command()
@click.option("--config", type=click.Path(dir_okay=False), help="TOML with the lists allow, deny and off.")
@click.option("--allow", multiple=True, metavar="OPERATION", help="Allow these operations alone, like kvp.*")
@click.option("--deny", multiple=True, metavar="OPERATION", help="Deny these operations, like direct.exec")
@click.option("--off", multiple=True, metavar="SERVICE", help="Do not serve this service, whatever the host says.")
@click.option("--state", metavar="FOLDER", help="Where services keep what outlives the agent.")
@click.option("--unit", is_flag=True, help="Print a unit for systemd instead.")
def agent(
    config: str | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    off: tuple[str, ...],
    state: str | None,
    unit: bool,
) -> None:
    """Serve the guest half of the integration services in this partition or guest, until SIGTERM or SIGINT.

    It serves what the host has enabled for this partition, to its host alone, and follows changes within a second.
    Under systemd it tells when it is ready (Type=notify).
    """
    if unit:
        import importlib.resources

        text = importlib.resources.files("hvsock.services").joinpath("hvsock-agent.service").read_text()
        click.echo(text, nl=False)
        return
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="hvsock agent: %(message)s")
    own_machine = transport.chosen() is Transport.VSOCK
    if not own_machine and paths.speaks_for_host(paths.fabric_folder()):
        raise UsageError(
            "this is the host, which has no agent: hvsock run --partition NAME -- hvsock agent, or in a guest "
            "HVSOCK_TRANSPORT=vsock hvsock agent"
        )
    settings = _settings(config)
    policy = Policy.of((*settings.get("allow", ()), *allow) or None, (*settings.get("deny", ()), *deny))
    folder = paths.partition_folder()
    chosen = state or os.environ.get("STATE_DIRECTORY") or default_state_folder(own_machine, folder)
    os.makedirs(chosen, mode=0o700, exist_ok=True)
    disabled = frozenset((*settings.get("off", ()), *off))
    supervisor = os.getpid()

    def run() -> None:
        asyncio.run(_run(own_machine, chosen, policy, folder, disabled, supervisor))

    with contextlib.closing(keeping.Forked(os.path.join(chosen, "direct"))) as kept, keeping.kept(kept):
        keeper = Child("the keeper of Direct", kept.run)
        if kept.is_awaited:
            keeper.start()  # it loads beside the supervisor
        with loading.for_good():
            from hvsock.services.agent import check_patterns, load  # here, as it loads for seconds if emulated

            load(disabled)
            check_patterns(policy, disabled)
        sys.exit(supervise(Child("the agent", lambda: conclude(run)), keeper))


async def _run(
    own_machine: bool, state: str, policy: Policy, folder: str, off: frozenset[str], supervisor: int
) -> None:
    from hvsock.services.agent import Agent

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            # ignored still, but not by the commands that it starts, which would ignore what it ignores
            signal.signal(number, lambda number, frame: None)
    surroundings = Surroundings(
        own_machine,
        state,
        policy,
        end=lambda: loop.call_soon_threadsafe(over.set),
        processes=frozenset({supervisor}),
    )
    made = Agent(surroundings, None if own_machine else folder, off=off)
    serving = asyncio.create_task(made.run(folder))
    ending = asyncio.create_task(over.wait())
    ready = asyncio.create_task(made.wait_ready())
    try:
        await asyncio.wait({serving, ending, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            say(f"the agent is ready (process {os.getpid()})")
            notify("READY=1")
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        notify("STOPPING=1")
        for task in (serving, ending, ready):
            task.cancel()
        await asyncio.wait({serving, ending, ready})
        # systemd and the supervisor both send it: what comes second comes too late, and would be taken for a crash
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    if not serving.cancelled() and (error := serving.exception()) is not None:
        raise error


def _settings(path: str | None) -> dict[str, Any]:
    """What a configuration file says.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is none.
    """
    if path is None:
        return {}
    import tomllib  # here, as most agents have no such file, and emulated guests load slowly

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        raise NotFoundError(f"there is no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    for name, value in found.items():
        if name not in ("allow", "deny", "off") or not (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            raise UsageError(f"{path}: {name} is not one of allow, deny and off with a list of texts")
    return found
