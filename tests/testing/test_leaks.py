"""leak_check finds what is left, waits for what is on its way out, and puts up with what is harmless."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import anyio
import anyio.to_thread
import pytest
import trio

from hvsock.testing import leak_check
from hvsock.testing.leaks import Snapshot

SHORT_GRACE_SECONDS = 0.02
"""Grace where something is left for good."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="descriptors and children are found in /proc")


@linux_only
def test_a_descriptor_is_a_leak() -> None:
    kept: list[socket.socket] = []
    try:
        with (
            pytest.raises(
                AssertionError, match=r"^left behind:(\n  descriptor \d+: socket:\[\d+\]){2}$"
            ) as caught,
            leak_check(grace_seconds=SHORT_GRACE_SECONDS),
        ):
            kept.extend(socket.socketpair())
        for end in kept:
            target = os.readlink(f"/proc/self/fd/{end.fileno()}")
            assert f"  descriptor {end.fileno()}: {target}" in str(caught.value).splitlines()
    finally:
        for end in kept:
            end.close()


@linux_only
def test_a_number_that_is_used_anew_is_a_leak() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)

    @leak_check(grace_seconds=SHORT_GRACE_SECONDS)
    def close_and_open() -> None:
        os.close(descriptor)
        assert os.open("/etc/passwd", os.O_RDONLY) == descriptor

    try:
        with pytest.raises(AssertionError, match=rf"^left behind:\n  descriptor {descriptor}: /etc/passwd$"):
            close_and_open()
    finally:
        os.close(descriptor)


@linux_only
def test_what_was_open_before_may_be_closed() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    with leak_check():
        os.close(descriptor)


@linux_only
def test_one_spare_descriptor_of_the_library_is_none() -> None:
    """Other tests of this process may have brought it about already; then the first one here is the second."""
    if sys.platform == "linux":
        kept: list[int] = []

        @leak_check(grace_seconds=SHORT_GRACE_SECONDS)
        def keep() -> None:
            kept.append(os.memfd_create("hvsock-spare"))

        with suppress(AssertionError):
            keep()
        with pytest.raises(AssertionError, match=r"^left behind:\n  descriptor \d+: /memfd:hvsock-spare"):
            keep()
        for descriptor in kept:
            os.close(descriptor)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    ("daemon", "text"), [(False, "thread 'lingering'"), (True, "thread 'lingering', a daemon")]
)
def test_a_thread_is_a_leak(release: threading.Event, daemon: bool, text: str) -> None:
    with (
        pytest.raises(AssertionError, match=f"^left behind:\n  {text}$"),
        leak_check(grace_seconds=SHORT_GRACE_SECONDS),
    ):
        threading.Thread(target=release.wait, name="lingering", daemon=daemon).start()


def test_a_thread_that_is_about_to_end_is_none(release: threading.Event) -> None:
    with leak_check():
        threading.Thread(target=release.wait).start()
        threading.Timer(0.02, release.set).start()


@linux_only
def test_a_process_is_a_leak() -> None:
    kept: list[subprocess.Popen[bytes]] = []
    with (
        pytest.raises(AssertionError, match=r"process \d+: .+, state [RSD]$") as caught,
        leak_check(grace_seconds=SHORT_GRACE_SECONDS),
    ):
        kept.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    assert f"process {kept[0].pid}: " in str(caught.value)
    kept[0].communicate(b"\n")


@linux_only
def test_a_process_that_ended_and_was_not_waited_for_is_a_leak() -> None:
    kept: list[int] = []

    @leak_check(grace_seconds=SHORT_GRACE_SECONDS)
    def forget() -> None:
        if sys.platform == "linux":
            kept.append(os.posix_spawn(sys.executable, [sys.executable, "--version"], {}))
            os.waitid(os.P_PID, kept[0], os.WEXITED | os.WNOWAIT)

    with pytest.raises(AssertionError, match=r"^left behind:\n  process \d+: .+, state Z$"):
        forget()
    os.waitpid(kept[0], 0)


def test_tasks_of_the_running_loop_are_leaks() -> None:
    async def main() -> None:
        with (
            pytest.raises(AssertionError, match=r"^left behind:\n  asyncio task <Task pending name='stray'"),
            leak_check(grace_seconds=SHORT_GRACE_SECONDS),
        ):
            stray = asyncio.create_task(asyncio.sleep(60), name="stray")
        stray.cancel()
        with leak_check():
            await asyncio.create_task(asyncio.sleep(0))

    asyncio.run(main())


def test_the_bodys_own_failure_passes_through(release: threading.Event) -> None:
    @leak_check()
    def fail() -> None:
        threading.Thread(target=release.wait).start()
        raise KeyError("the body's")

    with pytest.raises(KeyError, match="the body's"):
        fail()


def test_it_decorates_too(release: threading.Event) -> None:
    @leak_check(grace_seconds=SHORT_GRACE_SECONDS)
    def leave() -> None:
        threading.Thread(target=release.wait, name="lingering").start()

    with pytest.raises(AssertionError, match="lingering"):
        leave()


def test_event_loops_are_clean() -> None:
    """What asyncio, trio and anyio keep between runs (idle threads of trio) is none of the caller's doing."""

    async def on_asyncio() -> None:
        await asyncio.to_thread(threading.get_ident)
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with server:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
            assert await process.wait() == 0

    async def on_anyio() -> None:
        await anyio.to_thread.run_sync(threading.get_ident)
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)

    async def on_trio() -> None:
        await trio.to_thread.run_sync(threading.get_ident)

    with leak_check():
        asyncio.run(on_asyncio())
    with leak_check():
        trio.run(on_trio)
    for backend in ("asyncio", "trio"):
        with leak_check():
            anyio.run(on_anyio, backend=backend)


def test_a_busy_thread_of_trio_is_a_leak(release: threading.Event) -> None:
    async def main() -> None:
        with trio.move_on_after(0.01):
            await trio.to_thread.run_sync(release.wait, abandon_on_cancel=True)

    with pytest.raises(AssertionError, match="thread 'wait from "), leak_check(grace_seconds=SHORT_GRACE_SECONDS):
        trio.run(main)


def test_without_proc_threads_are_still_compared(
    monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    def nothing_there(path: str) -> list[str]:
        raise FileNotFoundError(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", nothing_there)
        assert Snapshot.take().descriptors == {}
        with pytest.raises(AssertionError, match="lingering"), leak_check(grace_seconds=SHORT_GRACE_SECONDS):
            threading.Thread(target=release.wait, name="lingering").start()
