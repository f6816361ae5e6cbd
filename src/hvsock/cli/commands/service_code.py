"""`hvsock service new` and `hvsock service serve`: services of one's own, in Python."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import sys

import click

from hvsock.cli.outcome import say
from hvsock.cli.output import json_option, print_json, to_terminal
from hvsock.errors import NotFoundError, UsageError
from hvsock.services.service import Service
from hvsock.services.serving import RawService, open_serving
from hvsock.services.skeleton import Names, write

if sys.platform != "linux":
    raise ImportError("services are served on Linux, in hosts and guests")


@click.command()
@click.argument("name")
@click.option("--folder", metavar="DIR", help="Where to; by default a folder named after it, here.")
@json_option
def new(name: str, folder: str | None, as_json: bool) -> None:
    """Write a new service called NAME: its module, both halves, and a test that passes.

    Nothing that is there already is overwritten.
    """
    names = Names.of(name)
    paths = write(names, names.module if folder is None else folder)
    if as_json:
        print_json({"name": names.name, "id": names.id, "files": paths})
        return
    for path in paths:
        click.echo(path)
    if to_terminal():
        say(f'next: hvsock service register "{names.name}" --id {names.id}')


@click.command()
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--bind", type=click.Choice(["parent", "children"]), default="parent", show_default=True)
def serve(target: str, bind: str) -> None:
    """Serve a service of a Python module, until SIGTERM or SIGINT.

    The module is looked for in this folder first. Who may connect, --bind says: this guest's host, or this
    host's VMs.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="hvsock service: %(message)s")
    asyncio.run(_serve(_load(target), bind))


async def _serve(service: Service | RawService, bind: str) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    async with await open_serving(service, bind) as serving:
        say(f"serving {service.NAME} (process {os.getpid()})")
        tasks = [asyncio.create_task(serving.wait_closed()), asyncio.create_task(over.wait())]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


def _load(target: str) -> Service | RawService:
    """The service that `target` names: a class without arguments, or an instance.

    Raises:
        NotFoundError: there is no such module, or it has no such name.
        UsageError: it is no service.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise UsageError(f"{target!r} is not MODULE:CLASS, like inventory:Inventory")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise NotFoundError(f"there is no module {error.name}, which {target} needs") from None
    except AttributeError:
        raise NotFoundError(f"the module {module} has no {name}") from None
    if isinstance(found, type) and issubclass(found, Service | RawService):
        found = found()
    if not isinstance(found, Service | RawService):
        raise UsageError(f"{target} is no service: neither a Service nor a RawService")
    return found
