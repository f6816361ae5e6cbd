"""`hvsock forward`."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import TYPE_CHECKING

import click

from hvsock import transport
from hvsock.cli.loglines import LogLines
from hvsock.cli.outcome import say
from hvsock.errors import UsageError
from hvsock.fabric import paths
from hvsock.relay import process
from hvsock.transport import Transport

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

if TYPE_CHECKING:
    from hvsock.registry.forwards import Forward

_TARGET = re.compile("=(?=(?:unix|tcp):)")


@click.command()
@click.argument("forwards", metavar="[NAME=TARGET]...", nargs=-1)
def forward(forwards: tuple[str, ...]) -> None:
    """Pass the connections of services on to existing servers, until SIGTERM or SIGINT.

    Without NAME=TARGET it serves what `hvsock service register --forward` wrote, on the host, and follows every
    change; `hvsock up` runs that by itself. With them, it serves these services in the partition it is in:
    NAME is a service's name, GUID or port, TARGET is unix:PATH or tcp:127.0.0.1:PORT. On the host they are
    there for its VMs, containers and local programs, in a guest for its host. NAME may also be
    unix:PATH?hybrid=PORT, for the guest of the VMM at PATH.
    """
    logging.basicConfig(level=logging.INFO, handlers=[LogLines()])
    if forwards:
        found = parse_forwards(forwards)
        process.serve(found, lambda: say(f"forwarding {', '.join(found)} (process {os.getpid()})"))
        return
    folder = paths.fabric_folder()
    if transport.chosen() is not Transport.FABRIC or not paths.speaks_for_host(folder):
        raise UsageError(
            "the registry's forwards are a fabric's host's; say here which ones: hvsock forward NAME=TARGET"
        )
    process.serve_registry(folder, lambda: say(f"the relay of {folder} is up (process {os.getpid()})"))


def parse_forwards(texts: tuple[str, ...]) -> dict[str, Forward]:
    """The forwards that NAME=TARGET spell, by name.

    Raises:
        UsageError: one of them is none, or a name is there twice.
    """
    from hvsock.registry.forwards import EXAMPLES, parse_forward

    found = {}
    for text in texts:
        match = _TARGET.search(text)
        if match is None or not match.start():
            raise UsageError(f"{text!r} is not NAME=TARGET, with a target like {EXAMPLES}")
        name = text[: match.start()]
        if name in found:
            raise UsageError(f"{name!r} is there twice")
        found[name] = parse_forward(text[match.end() :])
    return found
