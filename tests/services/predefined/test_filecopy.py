"""File copy: trees both ways over a fabric, what is left out, what is in the way, and copies that were cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.errors import BusyError, HvsockError, LostError, NotFoundError, NotReadyError, RefusedError, UsageError
from hvsock.services.agenthood import Surroundings
from hvsock.services.policy import Policy
from hvsock.services.predefined.filecopy import guest as guest_module
from hvsock.services.predefined.filecopy.channel import Channel
from hvsock.services.predefined.filecopy.copying import Outcome, copy_from, copy_to
from hvsock.services.predefined.filecopy.frames import RESUME_BYTES, Counts, Failure, Kind, Overwrite
from hvsock.services.predefined.filecopy.guest import GuestServiceInterface
from hvsock.services.predefined.filecopy.receiving import Limits, Receiver
from hvsock.services.predefined.filecopy.sending import Progress, Sender
from hvsock.services.serving import serve
from hvsock.testing.fabric import EmbeddedFabric, fabric
from tests.support import sample

SERVICE = ServiceId.from_port(GUEST_SERVICE_INTERFACE.port)
Tree = dict[bytes, Any]
Sight = dict[bytes, tuple[Any, ...]]


# -- trees


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> Tree:
    """Small trees: (mode, mtime, contents) of a file, a link's target as a string, or a tree."""
    names = st.binary(min_size=1, max_size=12).map(lambda one: one.replace(b"/", b"_").replace(b"\0", b"0"))
    files = st.tuples(
        st.sampled_from([0o644, 0o600, 0o755, 0o400, 0o666, 0o4755]),
        st.integers(-(10**18), 4 * 10**18),
        st.binary(max_size=200),
    )
    links = st.binary(min_size=1, max_size=30).map(lambda one: one.replace(b"\0", b"x").decode("latin-1"))
    inside = st.one_of(files, links) if depth == 0 else st.one_of(files, links, trees(depth - 1))
    return draw(st.dictionaries(names.filter(lambda one: one not in (b".", b"..")), inside, max_size=5))


def make(tree: Tree, folder: bytes) -> None:
    """Make `tree` on the disk."""
    os.mkdir(folder)
    for name, what in tree.items():
        path = os.path.join(folder, name)
        if isinstance(what, dict):
            make(what, path)
        elif isinstance(what, str):
            os.symlink(what.encode("latin-1"), path)
        else:
            mode, mtime, data = what
            with open(path, "wb") as file:
                file.write(data)
            os.chmod(path, mode)
            os.utime(path, ns=(mtime, mtime))


def look(folder: bytes, mask: int) -> Sight:
    """What is on the disk: kinds, modes as far as `mask`, times, contents."""
    seen: Sight = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(root, name)
            status = os.lstat(path)
            key = os.path.relpath(path, folder)
            if stat.S_ISLNK(status.st_mode):
                seen[key] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                seen[key] = ("folder", stat.S_IMODE(status.st_mode) & mask, status.st_mtime_ns)
            else:
                with open(path, "rb") as file:
                    seen[key] = (stat.S_IMODE(status.st_mode) & mask, status.st_mtime_ns, file.read())
    return seen


# -- a fabric with a guest


class World:
    """A fabric with the guest web01, that serves file copy with the folder `root` as if it was its own."""

    def __init__(self, made: EmbeddedFabric, root: Path) -> None:
        self.made = made
        self.guest = made.create_partition("web01")
        self.host = made.host.folder
        self.root = root
        self.policy = Policy()
        self.options: dict[str, Any] = {"partition": self.host}
        made.registry.set_enabled(SERVICE, True, self.guest.id)

    def run(self, work: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Run `work` while the guest serves."""

        async def main() -> Outcome:
            service = GuestServiceInterface(Surroundings(False, str(self.root), self.policy))
            async with serve(service, bind="parent", partition=self.guest.folder):
                return await work()

        return asyncio.run(main())

    def put(self, source: str | bytes | Path, target: str | bytes | Path, **options: Any) -> Outcome:
        """Copy to the guest."""
        return self.run(lambda: copy_to("web01", source, target, partition=self.host, **options))

    def get(self, source: str | bytes | Path, target: str | bytes | Path, **options: Any) -> Outcome:
        """Copy from the guest."""
        return self.run(lambda: copy_from("web01", source, target, partition=self.host, **options))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fabric with a guest."""
    with fabric() as made:
        yield World(made, tmp_path)


@contextlib.contextmanager
def scratch() -> Iterator[bytes]:
    """A folder of one example."""
    folder = tempfile.mkdtemp().encode()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def over_pair(sender: Callable[[Channel], Any], receiver: Callable[[Channel], Any]) -> tuple[Any, Any]:
    """Run both sides over a pair of sockets; returns what each returned, or raised."""
    ends = socket.socketpair()
    results: list[Any] = [None, None]

    def run(index: int, work: Callable[[Channel], Any]) -> None:
        try:
            with ends[index] as sock:
                results[index] = work(Channel(sock))
        except (OSError, HvsockError) as error:
            results[index] = error

    thread = threading.Thread(target=run, args=(0, sender))
    thread.start()
    run(1, receiver)
    thread.join()
    return results[0], results[1]


def receive(channel: Channel, folder: bytes, mask: int = 0o777, **options: Any) -> Any:
    """Be the receiver, with its answers."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        settings = {"overwrite": Overwrite.REFUSE, "limits": Limits(), "mode_mask": mask, **options}
        receiver = Receiver(channel, descriptor, b"copy", **settings)
        with contextlib.closing(receiver):
            counts, failures, left_out = receiver.run()
    finally:
        os.close(descriptor)
    for failure in failures:
        channel.send(failure.to_frame(Kind.FAILED))
    channel.send(counts.to_frame())
    channel.flush()
    return counts, failures, left_out


# -- round trips


@settings(max_examples=sample(8, 20))
@given(trees())
def test_any_tree_arrives_as_it_was(tree: Tree) -> None:
    with scratch() as folder:
        source, target = os.path.join(folder, b"source"), os.path.join(folder, b"target")
        make(tree, source)
        os.mkdir(target)
        sent, received = over_pair(
            lambda channel: Sender(channel).run(source, recursive=True), lambda channel: receive(channel, target)
        )
        assert received[1:] == ([], [])
        assert sent == (received[0], [])
        assert look(os.path.join(target, b"copy"), 0o7777) == look(source, 0o777)
        again, _ = over_pair(
            lambda channel: Sender(channel).run(source, recursive=True), lambda channel: receive(channel, target)
        )
        counts, failures = again
        assert failures == []
        assert (counts.files, counts.folders, counts.links) == (0, 0, 0)


def test_a_tree_to_a_guest_and_back(world: World, tmp_path: Path) -> None:
    big = os.urandom(3 * RESUME_BYTES + 17)
    tree: Tree = {
        b"empty": (0o644, 5 * 10**17, b""),
        b"not \xff utf-8\n": (0o640, 1, b"x"),
        b"big": (0o755, 10**18 + 7, big),
        b"folder": {b"link": "../../etc/passwd", b"nothing": {}},
    }
    make(tree, os.fsencode(tmp_path / "here"))
    seen: list[Progress] = []
    sent = world.put(
        tmp_path / "here", tmp_path / "a/b/there", recursive=True, parents=True,
        report=lambda one: seen.append(one),
    )  # fmt: skip
    assert sent == Outcome(Counts(files=3, folders=3, links=1, size=len(big) + 1))
    assert (seen[-1].entries, seen[-1].size) == (seen[-1].all_entries, seen[-1].all_size) == (7, len(big) + 1)
    back = world.get(tmp_path / "a/b/there", tmp_path / "back", recursive=True)
    assert back == sent
    here = look(os.fsencode(tmp_path / "here"), 0o777)
    assert look(os.fsencode(tmp_path / "a/b/there"), 0o7777) == here
    assert look(os.fsencode(tmp_path / "back"), 0o7777) == here


def test_where_a_copy_goes(world: World, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"data")
    (tmp_path / "folder").mkdir()
    for target, arrived in (("folder", "folder/file"), ("folder/new", "folder/new"), ("other", "other")):
        world.put(source, tmp_path / target)
        assert (tmp_path / arrived).read_bytes() == b"data"
    (tmp_path / "mine").mkdir()
    world.get(source, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_bytes() == b"data"
    with pytest.raises(NotFoundError):
        world.put(source, tmp_path / "no/such")
    with pytest.raises(NotFoundError):
        world.put(source, f"{tmp_path}/slash/")
    world.put(source, f"{tmp_path}/slash/", parents=True)
    assert (tmp_path / "slash/file").read_bytes() == b"data"


@pytest.mark.parametrize("size", [4, RESUME_BYTES + 4])
@pytest.mark.parametrize("direction", ["put", "get"])
def test_what_is_there_already(world: World, tmp_path: Path, direction: str, size: int) -> None:
    copy = getattr(world, direction)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"a" * size)
    target.write_bytes(b"b" * size)
    (failure,) = copy(source, target).failures
    assert failure.path == b"target"
    assert "--force" in failure.reason
    assert target.read_bytes() == b"b" * size
    kept = copy(source, target, overwrite=Overwrite.KEEP)
    assert (kept.counts.unchanged, kept.failures) == (1, [])
    assert target.read_bytes() == b"b" * size
    assert copy(source, target, overwrite=Overwrite.REPLACE).counts.files == 1
    assert target.read_bytes() == b"a" * size
    assert copy(source, target).counts.unchanged == 1
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_what_is_left_out_is_told_and_the_rest_arrives(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_bytes(b"data")
    for copy, target in ((world.put, "there"), (world.get, "here")):
        outcome = copy(source, tmp_path / target, recursive=True)
        (failure,) = outcome.failures
        assert failure.path.endswith(b"/pipe")
        assert "neither" in failure.reason
        assert os.listdir(tmp_path / target) == ["file"]


def test_a_file_that_changes_while_it_is_read_is_not_put_in_place(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()

    def change(shorter: bool, progress: Progress) -> None:
        if shorter:
            os.truncate(source, 10)
        os.utime(source, ns=(1, progress.size))

    def send(shorter: bool, channel: Channel) -> Any:
        return Sender(channel, partial(change, shorter)).run(os.fsencode(source), recursive=False)

    for shorter in (False, True):
        source.write_bytes(b"x" * (RESUME_BYTES + 1))
        sent, received = over_pair(partial(send, shorter), lambda channel: receive(channel, os.fsencode(target)))
        assert [one.path for one in received[2]] == [b"copy"]
        assert sent[1][0].reason == received[2][0].reason
        assert os.listdir(target) == []


# -- refusals


def test_refusals(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="absolute"):
        world.put(tmp_path / "file", "relative")
    with pytest.raises(UsageError, match="-r"):
        world.put(tmp_path / "folder", "/tmp/never")
    with pytest.raises(UsageError, match="-r"):
        world.get(tmp_path / "folder", tmp_path / "never")
    with pytest.raises(UsageError, match="leads to"):
        world.get(f"{tmp_path}/../x", tmp_path / "never")
    for copy in (world.put, world.get):
        with pytest.raises(NotFoundError, match="nothing"):
            copy(tmp_path / "nothing", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    world.policy = Policy.of(deny=["filecopy.write"])
    with pytest.raises(RefusedError, match=r"filecopy\.write"):
        world.put(tmp_path / "file", tmp_path / "never")
    world.get(tmp_path / "file", tmp_path / "copy")
    world.policy = Policy.of(deny=["filecopy.read"])
    with pytest.raises(RefusedError, match=r"filecopy\.read"):
        world.get(tmp_path / "file", tmp_path / "never")


def test_a_service_that_is_off_or_not_served_says_what_to_do(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")

    def copy() -> Outcome:
        return asyncio.run(copy_to("web01", tmp_path / "file", "/tmp/never", partition=world.host))

    with pytest.raises(NotReadyError, match="hvsock agent"):
        copy()
    world.made.registry.set_enabled(SERVICE, False, world.guest.id)
    with pytest.raises(RefusedError, match='hvsock integration enable web01 "Guest Service Interface"'):
        copy()


def test_no_more_copies_than_the_bound(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_module, "MAX_COPIES", 0)
    (tmp_path / "file").write_bytes(b"data")
    with pytest.raises(BusyError):
        world.get(tmp_path / "file", tmp_path / "copy")


def test_something_in_the_way(world: World, tmp_path: Path) -> None:
    """Neither folders nor links that are there are written through."""
    make({b"a": {b"b": (0o644, 1, b"data")}, b"c": (0o644, 1, b"data")}, os.fsencode(tmp_path / "source"))
    outside = tmp_path / "outside"
    outside.mkdir()
    for copy, target in ((world.put, tmp_path / "there"), (world.get, tmp_path / "here")):
        target.mkdir()
        (target / "source").mkdir()
        (target / "source/a").symlink_to(outside)
        (target / "source/c").mkdir()
        outcome = copy(tmp_path / "source", target, recursive=True, overwrite=Overwrite.REPLACE)
        assert {os.path.basename(one.path) for one in outcome.failures} == {b"a", b"c"}
    assert os.listdir(outside) == []


# -- cuts


class Cut(socket.socket):
    """A socket whose connection ends after so many bytes."""

    left: int

    def sendall(self, data: Any, *flags: Any) -> None:
        view = memoryview(data)
        super().sendall(view[: self.left])
        self.left -= len(view)
        if self.left <= 0:
            self.shutdown(socket.SHUT_RDWR)


@settings(max_examples=sample(6, 12))
@given(st.integers(1, 4 * RESUME_BYTES))
def test_a_copy_that_was_cut_goes_on(cut: int) -> None:
    with scratch() as folder:
        source, target = os.path.join(folder, b"source"), os.path.join(folder, b"target")
        data = os.urandom(64) * (2 * RESUME_BYTES // 64)
        make({b"1": (0o644, 1, b"small"), b"2": (0o644, 2, data), b"3": (0o644, 3, data)}, source)
        os.mkdir(target)
        near, far = socket.socketpair()

        def send() -> None:
            with Cut(fileno=near.detach()) as sock, contextlib.suppress(LostError):
                sock.left = cut
                Sender(Channel(sock)).run(source, recursive=True)

        thread = threading.Thread(target=send)
        thread.start()
        with far, contextlib.suppress(LostError):
            receive(Channel(far), target)
        thread.join()
        kept = sum(len(one[-1]) for one in look(target, 0o777).values() if isinstance(one[-1], bytes))
        _, (counts, failures, left_out) = over_pair(
            lambda channel: Sender(channel).run(source, recursive=True), lambda channel: receive(channel, target)
        )
        assert (failures, left_out) == ([], [])
        assert look(os.path.join(target, b"copy"), 0o777) == look(source, 0o777)
        large = kept - kept % RESUME_BYTES if kept >= 4 * RESUME_BYTES else kept - min(kept, 5)
        assert counts.resumed >= large


def test_a_damaged_part_is_not_gone_on_with(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    source.write_bytes(b"x" * (2 * RESUME_BYTES))
    near, far = socket.socketpair()

    def send() -> None:
        with Cut(fileno=near.detach()) as sock, contextlib.suppress(LostError):
            sock.left = RESUME_BYTES
            Sender(Channel(sock)).run(os.fsencode(source), recursive=False)

    thread = threading.Thread(target=send)
    thread.start()
    with far, pytest.raises(LostError):
        receive(Channel(far), os.fsencode(target))
    thread.join()
    (part,) = target.iterdir()
    with open(part, "r+b") as file:
        file.write(b"y")
    _, (counts, _, _) = over_pair(
        lambda channel: Sender(channel).run(os.fsencode(source), recursive=False),
        lambda channel: receive(channel, os.fsencode(target)),
    )
    assert counts == Counts(files=1, size=2 * RESUME_BYTES)
    assert (target / "copy").read_bytes() == source.read_bytes()


KILLED = """
import asyncio, os, signal, sys
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.filecopy.copying import copy_to
from hvsock.services.predefined.filecopy.guest import GuestServiceInterface
from hvsock.services.predefined.filecopy.placing import Partial
from hvsock.services.serving import serve

who, partition, source, target = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def guest():
    write = Partial.write
    def some(self, data):
        write(self, data)
        if self.size > 1 << 20:
            die()
    Partial.write = some
    async with serve(GuestServiceInterface(Surroundings(False, "/")), bind="parent", partition=partition):
        print("ready", flush=True)
        await asyncio.sleep(60)

async def host():
    await copy_to("web01", source, target, partition=partition, report=lambda one: one.size > 1 << 20 and die())

asyncio.run(guest() if who == "guest" else host())
"""


@pytest.mark.parametrize("who", ["host", "guest"])
def test_a_kill_of_either_side_in_the_midst_leaves_what_the_next_try_goes_on_with(
    world: World, tmp_path: Path, who: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(1 << 20) * 8)
    partition = world.guest.folder if who == "guest" else world.host
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, who, partition, str(source), str(target)], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        if who == "guest":
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises((LostError, OSError)):
                asyncio.run(copy_to("web01", source, target, partition=world.host))
            assert child.wait() == -signal.SIGKILL
        else:

            async def killed() -> Outcome:
                assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
                return Outcome(Counts())

            world.run(killed)
    assert not target.exists()
    outcome = world.put(source, target)
    assert outcome.failures == []
    assert outcome.counts.resumed > 0
    assert outcome.counts.size + outcome.counts.resumed == 8 << 20
    assert target.read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_cancelling_ends_the_copy_on_both_sides(world: World, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * (8 << 20))

    async def cancelled() -> Outcome:
        loop = asyncio.get_running_loop()
        under_way = asyncio.Event()
        go_on = threading.Event()

        def report(progress: Progress) -> None:
            loop.call_soon_threadsafe(under_way.set)
            go_on.wait()

        task = asyncio.create_task(copy_to("web01", source, target, partition=world.host, report=report))
        await under_way.wait()
        task.cancel()
        loop.call_later(0.01, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        return Outcome(Counts())

    world.run(cancelled)
    assert not target.exists()


def test_two_copies_of_one_file_do_not_mix(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    source.write_bytes(b"x" * (2 * RESUME_BYTES))
    second: list[Any] = []

    def copy(report: Callable[[Progress], None]) -> tuple[Any, Any]:
        return over_pair(
            lambda channel: Sender(channel, report).run(os.fsencode(source), recursive=False),
            lambda channel: receive(channel, os.fsencode(target)),
        )

    def another(progress: Progress) -> None:
        if not second:
            second.append(None)
            second[0] = copy(lambda _: None)

    copy(another)
    _, (counts, failures, _) = second[0]
    assert counts.files == 0
    assert failures == [Failure(b"copy", "another copy of the same file is under way")]
    assert (target / "copy").read_bytes() == source.read_bytes()


def test_a_full_disk_ends_the_copy_with_its_error(world: World, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        os.truncate(file.fileno(), 1 << 42)
    with pytest.raises(OSError, match="No space left"):
        world.put(source, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]
