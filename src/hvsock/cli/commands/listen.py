"""`hvsock listen`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import click

import hvsock
from hvsock.addresses import Address
from hvsock.cli.names import complete_addresses, complete_services
from hvsock.cli.outcome import ExitCode, say, text_of
from hvsock.cli.sessions import (
    accept,
    address_of,
    check_session,
    describe,
    echo_back,
    execute,
    pipe,
    session_options,
)
from hvsock.errors import HvsockError
from hvsock.sockets.chosen import socket

STANDARD_INPUT: Final = 0
MAX_AT_ONCE: Final = 64
"""Connections served at once by default: each has a process with --exec, a thread and 256 KiB with --echo."""


@click.command()
@click.argument("address", shell_complete=complete_addresses)
@click.argument("service", required=False, shell_complete=complete_services)
@click.option("--once", is_flag=True, help="End after the first connection.")
@click.option(
    "--max",
    "at_once",
    metavar="NUMBER",
    type=click.IntRange(1, 4096),
    default=MAX_AT_ONCE,
    show_default=True,
    help="Connections served at once, with --exec and --echo; others wait.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error who connects.")
@session_options
def listen(
    address: str,
    service: str | None,
    once: bool,
    at_once: int,
    verbose: bool,
    command: str | None,
    echo: bool,
    progress: bool,
) -> int:
    """Take connections to a service.

    ADDRESS is any, children, parent, loopback, a partition's name or a VmId; SERVICE is a name, a GUID or a
    port; or ADDRESS is both as a URL: hvsocket://ADDRESS/SERVICE, vsock://CID:PORT, or unix:PATH?hybrid=PORT for
    what the guest of the VMM at PATH connects to, with &profile=NAME (hvsock hybrid profiles). Connections are
    served one after another: the first gets standard input, and what all of them send is printed. With --exec and
    --echo they are served at once. A command finds HVSOCK_PEER_VMID and HVSOCK_PEER_SERVICE in its environment.
    """
    check_session(command, echo, progress)
    with hvsock.create_server(address_of(address, service)) as server:
        if verbose:
            say(f"listening on {describe(server.getsockname())}")
        if command is not None:
            _serve_at_once(server, lambda sock: execute(sock, command), once, at_once, verbose)
        elif echo:
            _serve_at_once(server, echo_back, once, at_once, verbose)
        else:
            _serve_in_turn(server, once, progress, verbose)
    return ExitCode.OK


def _serve_in_turn(server: socket, once: bool, progress: bool, verbose: bool) -> None:
    source: int | None = STANDARD_INPUT
    while True:
        sock, peer = accept(server)
        with sock:
            if verbose:
                say(f"{describe(peer)} is connected")
            try:
                pipe(sock, source, progress=progress)
            except ConnectionError as error:
                if once or isinstance(error, BrokenPipeError):
                    raise
                say(f"{describe(peer)}: {text_of(error)}")
        source = None
        if once:
            return


def _serve_at_once(
    server: socket, serve: Callable[[socket], object], once: bool, at_once: int, verbose: bool
) -> None:
    """Serve each connection in a thread of its own, `at_once` of them at most."""
    if once:
        sock, peer = accept(server)
        if verbose:
            say(f"{describe(peer)} is connected")
        with sock:
            serve(sock)
        return
    places = threading.BoundedSemaphore(at_once)

    def work(sock: socket, peer: Address) -> None:
        try:
            with sock:
                serve(sock)
        except (HvsockError, OSError) as error:
            say(f"{describe(peer)}: {text_of(error)}")
        finally:
            places.release()

    while True:
        places.acquire()
        sock, peer = accept(server)
        if verbose:
            say(f"{describe(peer)} is connected")
        threading.Thread(target=work, args=(sock, peer), name="hvsock-session", daemon=True).start()
