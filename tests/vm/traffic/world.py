"""A fabric with real guests, each with an agent in it that does what a test asks for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import socket as stdlib
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import hvsock
from hvsock.addresses import ServiceId, VmId
from hvsock.errors import HvsockError

assert sys.platform == "linux"

from hvsock.fabric import paths
from hvsock.registry import Registry
from hvsock.vm import control
from hvsock.vm.qemu import CONSOLE_LOG, REPORT_SOCKET
from hvsock.vm.runs import SUPERVISOR_LOG, Run
from tests.cli.helpers import hvsock as command
from tests.faults.processes import BrokerProcess
from tests.vm.guest_scripts import agent, traffic
from tests.vm.guest_scripts.traffic import WAIT_SECONDS
from tests.vm.support import PATIENCE, guest_image, wait_until
from tests.waiting import is_alive

SCRIPTS: Final = Path(__file__).parent.parent / "guest_scripts"
ANSWER_SECONDS: Final = 2 * WAIT_SECONDS
"""Longest time until a guest answers."""
T = TypeVar("T")


class GuestError(Exception):
    """What went wrong in a guest and is no OSError; the text has its kind and words."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a guest is made of.

    Attributes:
        series: its kernel's.
        cpus: its processors.
        group: the group that it is a member of.
        data_disks: the files of its data disks.
        options: more words for QEMU.
        agent: whether it has its agent, which it loads for some seconds.
    """

    series: str
    cpus: int
    group: str | None = None
    data_disks: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    agent: bool = False


class Remote:
    """What is in a guest, and has methods that its agent calls."""

    def __init__(self, guest: Asking, number: int) -> None:
        self._guest = guest
        self._number = number
        self._closed = False

    def _call(self, method: str, *arguments: Any, data: bytes = b"") -> tuple[Any, bytes]:
        if self._closed:
            raise ValueError("it is closed")
        return self._guest.exchange("call", data, number=self._number, method=method, arguments=arguments)

    def close(self) -> None:
        """Close it there, once."""
        if not self._closed:
            self._call("close")
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, GuestError):  # the guest, and all that is in it, may be gone
            self.close()


class RemoteFile(Remote):
    """A file that a socket of a guest made: what it takes and gives is text or bytes, as with any file."""

    def write(self, data: Any, /) -> int:
        """See :meth:`io.BufferedWriter.write`, and that of text."""
        found, _ = self._call("write", data) if isinstance(data, str) else self._call("write", data=bytes(data))
        return int(found)

    def writelines(self, lines: list[str], /) -> None:
        """See :meth:`io.IOBase.writelines`; of text."""
        self._call("writelines", lines)

    def flush(self) -> None:
        """See :meth:`io.IOBase.flush`."""
        self._call("flush")

    def readline(self) -> Any:
        """See :meth:`io.IOBase.readline`."""
        text, data = self._call("readline")
        return data if text is None else text

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line


class RemoteSocket(Remote):
    """A socket of a guest; its methods are those of a socket, with a socket's errors."""

    def settimeout(self, value: float | None, /) -> None:
        """See :meth:`socket.socket.settimeout`."""
        self._call("settimeout", value)

    def connect(self, address: tuple[Any, Any]) -> None:
        """See :meth:`socket.socket.connect`."""
        self._call("connect", list(address))

    def bind(self, address: tuple[Any, Any]) -> None:
        """See :meth:`socket.socket.bind`."""
        self._call("bind", list(address))

    def listen(self) -> None:
        """See :meth:`socket.socket.listen`."""
        self._call("listen", 128)

    def accept(self) -> tuple[RemoteSocket, list[Any]]:
        """See :meth:`socket.socket.accept`."""
        (number, peer), _ = self._call("accept")
        return RemoteSocket(self._guest, number), peer

    def getpeername(self) -> list[Any]:
        """See :meth:`socket.socket.getpeername`."""
        found: list[Any] = self._call("getpeername")[0]
        return found

    def getsockname(self) -> list[Any]:
        """See :meth:`socket.socket.getsockname`."""
        found: list[Any] = self._call("getsockname")[0]
        return found

    def getsockopt(self, level: int, option: int) -> int:
        """See :meth:`socket.socket.getsockopt`."""
        return int(self._call("getsockopt", level, option)[0])

    def send(self, data: Any, /) -> int:
        """See :meth:`socket.socket.send`."""
        data = bytes(data)
        return int(self._call("send", data=data)[0]) if data else 0

    def sendall(self, data: Any, /) -> None:
        """See :meth:`socket.socket.sendall`."""
        if data := bytes(data):
            self._call("sendall", data=data)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """See :meth:`socket.socket.recv`."""
        return self._call("recv", bufsize, flags)[1]

    def recv_into(self, buffer: Any, /) -> int:
        """See :meth:`socket.socket.recv_into`."""
        data = self.recv(len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def shutdown(self, how: int, /) -> None:
        """See :meth:`socket.socket.shutdown`."""
        self._call("shutdown", how)

    def sendmsg(self, buffers: list[Any], /) -> int:
        """See :meth:`socket.socket.sendmsg`."""
        pieces = [bytes(one) for one in buffers]
        return int(self._call("sendmsg", *map(len, pieces), data=b"".join(pieces))[0])

    def recvmsg_into(self, buffers: list[Any], /) -> tuple[int, list[Any], int, None]:
        """See :meth:`socket.socket.recvmsg_into`; neither ancillary data nor an address come along."""
        flags, data = self._call("recvmsg_into", *map(len, buffers))
        left = data
        for buffer in buffers:
            piece, left = left[: len(buffer)], left[len(buffer) :]
            memoryview(buffer)[: len(piece)] = piece
        return len(data), [], flags, None

    def makefile(self, mode: str = "r", **keywords: Any) -> RemoteFile:
        """See :meth:`socket.socket.makefile`."""
        return RemoteFile(self._guest, self._call("makefile", mode, keywords)[0])


class Asking(ABC):
    """What asks an agent in a guest, over connections that are kept for the next question.

    Attributes:
        answer_seconds: longest time until it answers.
    """

    answer_seconds = ANSWER_SECONDS

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[stdlib.socket, Any]] = []

    @abstractmethod
    def link(self) -> stdlib.socket:
        """A fresh connection to the agent."""

    def forget(self) -> None:
        """The connections to the agent are of no use any more."""
        with self._lock:
            idle, self._idle = self._idle, []
        for sock, file in idle:
            file.close()
            sock.close()

    def exchange(self, do: str, data: bytes = b"", *, beside: bool = False, **arguments: Any) -> tuple[Any, bytes]:
        """Ask the agent, and wait for its answer.

        Raises:
            OSError: what the guest's sockets raised, or the connection to the agent.
            GuestError: something else went wrong there.
        """
        link = self._take()
        try:
            agent.send(link[1], {"do": do, "beside": beside, "arguments": arguments}, data)
            answer, payload = agent.receive(link[1])
        except BaseException:
            link[1].close()
            link[0].close()
            raise
        with self._lock:
            self._idle.append(link)
        if "error" not in answer:
            return answer["result"], payload
        if answer["error"] == "TimeoutError":
            raise TimeoutError(answer["text"])
        if answer["errno"] is not None:
            raise OSError(answer["errno"], answer["text"])
        raise GuestError(f"{answer['error']}: {answer['text']}\n{answer['trace']}")

    def _take(self) -> tuple[stdlib.socket, Any]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        sock = self.link()
        sock.settimeout(self.answer_seconds)
        return sock, sock.makefile("rwb")

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the agent answers."""
        return self.exchange(do, **arguments)[0]

    def begin(self, do: str, **arguments: Any) -> Callable[[], Any]:
        """Have the agent begin something; what is returned waits for its result."""
        job = self.ask(do, beside=True, **arguments)

        def finish() -> Any:
            outcome = self.ask("finish", job=job)
            assert "result" in outcome, outcome["trace"]
            return outcome["result"]

        return finish

    def output(self, *words: str, input: bytes = b"", seconds: float = WAIT_SECONDS) -> tuple[int, bytes]:
        """The exit code of a program, and what it prints."""
        code, text = self.exchange("run", input, command=words, seconds=seconds)
        return code, text

    def socket(self, type: int = stdlib.SOCK_STREAM, *, plain: bool = False) -> RemoteSocket:
        """A fresh socket in the guest, with a time-out; `plain`: Python's own AF_VSOCK."""
        made = RemoteSocket(self, self.ask("socket", type=type, plain=plain))
        made.settimeout(WAIT_SECONDS)
        return made


class Guest(Asking):
    """A guest, which may be started, ended and started again.

    Args:
        world: where it is.
        name: its partition's.
        kind: what it is made of.
    """

    def __init__(self, world: World, name: str, kind: Kind) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.run = Run(world.folder, name)
        self.vm_id = VmId("00000000-0000-0000-0000-000000000000")
        self.cid = 0
        self._world = world

    def ensure(self) -> None:
        """Start it, unless it runs already."""
        if self.run.runs():
            return
        self.forget()
        guest_image(self.kind.series)
        words = ["--accel", "tcg", "--kernel", self.kind.series, "--cpus", str(self.kind.cpus), "--wait", "--json"]
        words += ["--group", self.kind.group] if self.kind.group else []
        words += [word for disk in self.kind.data_disks for word in ("--data-disk", disk)]
        words += [word for option in self.kind.options for word in ("--qemu", option)]
        words += ["--append", f"hvsock.agent={self.kind.agent:d}"]
        words += ["--overlay", str(self._world.overlay)]
        words += ["--run", "cd /root && exec python3 -m tests.vm.guest_scripts.agent"]
        done = command("vm", "start", self.name, *words, env=self._world.environment, seconds=PATIENCE)
        found = json.loads(done.stdout)
        self.vm_id, self.cid = VmId(found["vm_id"]), found["cid"]
        assert self.ask("facts")["cpus"] == self.kind.cpus

    def end(self) -> None:
        """Switch it off, if it runs."""
        self.forget()
        with contextlib.suppress(HvsockError):
            control.ask(self.run, "kill")
        if os.path.isdir(self.run.folder):
            self.run.wait_for_end()

    def link(self) -> stdlib.socket:
        """See :meth:`Asking.link`."""
        return connected_for_good((self.vm_id, ServiceId.from_port(agent.PORT)))

    # -- the device

    def report(self) -> dict[str, Any]:
        """The device's counters."""
        with stdlib.socket(stdlib.AF_UNIX) as link:
            link.settimeout(WAIT_SECONDS)
            paths.at(self.run.folder, REPORT_SOCKET, link.connect)
            with link.makefile("rb") as file:
                found: dict[str, Any] = json.load(file)
        return found

    def wait_until_quiet(self) -> None:
        """Wait until no connection is left but those to the agent."""
        self.forget()
        wait_until(lambda: self.report()["connections"] == 0)

    def describe(self) -> str:
        """All that there is to see of it, for a test that failed."""
        parts = []
        for name in (CONSOLE_LOG, SUPERVISOR_LOG):
            with contextlib.suppress(FileNotFoundError), open(self.run.path(name), errors="replace") as file:
                parts.append(f"--- {self.name}: {name}\n{file.read()[-4000:]}")
        with contextlib.suppress(OSError, ValueError):
            parts.append(f"--- {self.name}: report of the device\n{json.dumps(self.report(), indent=1)}")
        return "\n".join(parts)


class World:
    """A fabric with guests; they start when they are needed, and go on until the end.

    Args:
        folder: the fabric's folder.
        kinds: its guests, by name.
        brought: a folder that goes over the guests' files.
        timesync: whether the guests' clocks are kept right.
    """

    def __init__(
        self, folder: Path, kinds: dict[str, Kind], brought: Path | None = None, *, timesync: bool = False
    ) -> None:
        self.folder = str(folder / "fabric")
        self.overlay = folder / "overlay"
        target = self.overlay / "root" / "tests" / "vm" / "guest_scripts"
        target.mkdir(parents=True)
        for script in ("agent.py", "traffic.py"):
            shutil.copy(SCRIPTS / script, target)
        if brought is not None:
            shutil.copytree(brought, self.overlay, dirs_exist_ok=True, symlinks=True)
        self.environment = {**os.environ, paths.FOLDER_VARIABLE: self.folder}
        self.environment.pop(paths.PARTITION_VARIABLE, None)
        self.broker = BrokerProcess(self.folder, timesync=timesync)
        self._ports = itertools.count(61_000)
        self._guests = {name: Guest(self, name, kind) for name, kind in kinds.items()}
        self.register(agent.PORT)

    def guest(self, name: str) -> Guest:
        """A guest, which runs."""
        found = self._guests[name]
        found.ensure()
        return found

    def forget(self) -> None:
        """Close the connections to all agents."""
        for guest in self._guests.values():
            guest.forget()

    def close(self) -> None:
        """End all guests and the broker; nothing may be left."""
        for guest in self._guests.values():
            guest.end()
        self.broker.close()
        left = [pid for pid in processes_in(self.folder) if is_alive(pid)]
        assert not left, f"processes are left: {left}"

    def describe(self) -> str:
        """All that there is to see of the guests that ran."""
        return "\n".join(guest.describe() for guest in self._guests.values() if os.path.isdir(guest.run.folder))

    # -- services

    def register(self, port: int) -> int:
        """Register the service of a port; returns the port."""
        with Registry(os.path.join(self.folder, "registry")) as registry:
            registry.register(f"port {port}", ServiceId.from_port(port))
        return port

    def port(self) -> int:
        """A fresh port, whose service is registered."""
        return self.register(next(self._ports))

    def connect(
        self, guest: Guest, port: int, type: int = stdlib.SOCK_STREAM, *, retry: bool = False
    ) -> hvsock.socket:
        """A connection of the host to a guest, with a time-out."""
        made: hvsock.socket = hvsock.create_connection(
            (guest.vm_id, str(port)), WAIT_SECONDS, retry=retry, type=type
        )
        return made

    def listen(self, port: int, type: int = stdlib.SOCK_STREAM) -> hvsock.socket:
        """A listener of the host for its guests, with a time-out."""
        return traffic.listen("children", port, type)

    def pair(
        self, guest: Guest, by_guest: bool, type: int = stdlib.SOCK_STREAM, *, survives_pause: bool = False
    ) -> tuple[hvsock.socket, RemoteSocket]:
        """A connection that the guest begins, or the host: (the host's end, the guest's end)."""
        service = ServiceId.from_port(self.port())
        with contextlib.ExitStack() as stack:
            near = stack.enter_context(hvsock.socket(type=type))
            near.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, int(survives_pause))
            near.settimeout(WAIT_SECONDS)
            far = guest.socket(type)
            stack.enter_context(far)
            if by_guest:
                near.bind((hvsock.HV_GUID_CHILDREN, service))
                near.listen()
                far.connect((hvsock.HV_GUID_PARENT, service))
                accepted, _ = near.accept()
                accepted.settimeout(WAIT_SECONDS)
                near.close()
                stack.pop_all()
                return accepted, far
            far.bind((hvsock.HV_GUID_WILDCARD, service))
            far.listen()
            near.connect((guest.vm_id, service))
            there, _ = far.accept()
            far.close()
            stack.pop_all()
            return near, there

    def between(
        self, guest: Guest, by_guest: bool, work: str, type: int = stdlib.SOCK_STREAM, **arguments: object
    ) -> list[str]:
        """Have one side connect by one function of :mod:`traffic`, and the other accept; what went wrong."""
        port = self.port()
        connecting, accepting = f"connect_{work}", f"accept_{work}"
        if by_guest:
            with self.listen(port, type) as listener:
                finish = guest.begin("connect", work=connecting, target=("parent", str(port)), arguments=arguments)
                here: list[str] = getattr(traffic, accepting)(listener, **arguments)
        else:
            finish = guest.begin("accept", work=accepting, port=port, type=type, arguments=arguments)
            here = getattr(traffic, connecting)((guest.vm_id, str(port)), **arguments)
        return [*(f"host: {one}" for one in here), *(f"guest: {one}" for one in finish())]


def connected_for_good(target: tuple[VmId, ServiceId]) -> hvsock.socket:
    """A connection of the host that pauses of the VM do not end; tried again while nothing listens."""
    deadline = time.monotonic() + PATIENCE  # a guest may have to start first
    while True:
        sock = hvsock.socket()
        try:
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, 1)
            sock.settimeout(WAIT_SECONDS)
            sock.connect(target)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
        except BaseException:
            sock.close()
            raise
        time.sleep(0.05)


def reset_after(sock: hvsock.socket) -> float:
    """Require that a stream ends as a reset, whatever comes before; the seconds until then.

    Raises:
        AssertionError: it ended as a clean end.
        TimeoutError: nothing came for as long as the socket waits.
    """
    started = time.monotonic()
    try:
        while sock.recv(traffic.RECEIVE_BYTES):
            pass
    except ConnectionResetError:
        return time.monotonic() - started
    raise AssertionError("the stream ended as if the other side had closed it")


def processes_in(folder: str) -> Iterator[int]:
    """The processes whose working folder is below `folder`."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.readlink(f"/proc/{name}/cwd").startswith(folder):
                yield int(name)


@contextlib.contextmanager
def beside(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `work` in a thread beside the body; all that it waits for has a time-out of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield future
    finally:
        thread.join()
