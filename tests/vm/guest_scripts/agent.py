"""Does in a guest what a test on its host asks for, over connections of the guest's own sockets.

Each request is a line of JSON with as many raw bytes behind it as its "bytes" says, and so is each answer.
Requests over different connections are served at once, those over one in turn.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import socket as stdlib
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any

assert sys.platform == "linux"

import hvsock
from tests.vm.guest_scripts import traffic

PORT = 60_100
"""Where the agent listens."""
MAX_LINE_BYTES = 1 << 20


def send(file: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    """Write a request or an answer."""
    file.write(json.dumps({**header, "bytes": len(data)}).encode() + b"\n" + data)
    file.flush()


def receive(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read one.

    Raises:
        EOFError: the connection ended.
    """
    line = file.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended")
    header: dict[str, Any] = json.loads(line)
    data = file.read(header["bytes"])
    if len(data) < header["bytes"]:
        raise EOFError("the connection ended within a message")
    return header, data


class Jobs:
    """What goes on beside the requests, by number."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._jobs: dict[int, tuple[threading.Thread, list[dict[str, Any]]]] = {}

    def begin(self, work: Callable[[], Any]) -> int:
        """Start one; returns its number."""
        outcome: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: outcome.append(outcome_of(work)), daemon=True)
        number = next(self._numbers)
        self._jobs[number] = thread, outcome
        thread.start()
        return number

    def finish(self, number: int) -> dict[str, Any]:
        """Wait for one; returns its outcome."""
        thread, outcome = self._jobs.pop(number)
        thread.join()
        return outcome[0]


def outcome_of(work: Callable[[], Any]) -> dict[str, Any]:
    """What `work` returns, or which error it raises, as JSON takes it."""
    try:
        return {"result": work()}
    except Exception as error:
        return {
            "error": type(error).__name__,
            "errno": getattr(error, "errno", None),
            "text": str(getattr(error, "strerror", None) or error),
            "trace": traceback.format_exc(),
        }


def sendmsg(sock: stdlib.socket, data: bytes, sizes: list[int]) -> int:
    """Send `data` as buffers of those sizes."""
    file = io.BytesIO(data)
    return sock.sendmsg([file.read(size) for size in sizes])


def recvmsg_into(sock: stdlib.socket, payload: list[bytes], sizes: list[int]) -> int:
    """Receive into buffers of those sizes; returns the flags."""
    buffers = [bytearray(size) for size in sizes]
    count, _, flags, _ = sock.recvmsg_into(buffers)
    payload.append(b"".join(buffers)[:count])
    return flags


class Agent:
    """The agent's sockets and their files, jobs and processes."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._kept: dict[int, Any] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._jobs = Jobs()

    def serve(self, sock: stdlib.socket) -> None:
        """Serve one connection to its end."""
        with sock, sock.makefile("rb") as source, sock.makefile("wb") as sink:
            while True:
                try:
                    request, data = receive(source)
                except (EOFError, OSError):
                    return
                payload: list[bytes] = []
                answer = outcome_of(lambda: self._do(request, data, payload))  # noqa: B023  (called here)
                try:
                    send(sink, answer, payload[0] if payload else b"")
                except OSError:
                    return

    def _do(self, request: dict[str, Any], data: bytes, payload: list[bytes]) -> Any:
        """Do what is asked for; bytes go into `payload`."""
        method = getattr(self, f"do_{request['do']}")
        arguments = request.get("arguments", {})
        if request["do"] in ("call", "run"):
            return method(data, payload, **arguments)
        if request.get("beside"):
            return self._jobs.begin(lambda: method(**arguments))
        return method(**arguments)

    # -- sockets

    def do_socket(self, type: int, plain: bool) -> int:
        """A fresh socket: of hvsock, or Python's own; returns its number."""
        return self._keep(stdlib.socket(stdlib.AF_VSOCK, type) if plain else hvsock.socket(type=type))

    def _keep(self, one: Any) -> int:
        number = next(self._numbers)
        self._kept[number] = one
        return number

    def do_call(self, data: bytes, payload: list[bytes], number: int, method: str, arguments: list[Any]) -> Any:
        """Call a method of a socket or a file; bytes that came are its first argument."""
        one = self._kept[number]
        if method == "sendmsg":
            return sendmsg(one, data, arguments)
        if method == "recvmsg_into":
            return recvmsg_into(one, payload, arguments)
        if method == "makefile":
            return self._keep(one.makefile(arguments[0], **arguments[1]))
        if method in ("connect", "bind"):
            arguments = [tuple(arguments[0])]
        result = getattr(one, method)(*([data] if data else []), *arguments)
        if method == "close":
            del self._kept[number]
        elif method == "accept":
            accepted, peer = result
            accepted.settimeout(one.gettimeout())
            return self._keep(accepted), peer
        elif isinstance(result, bytes):
            payload.append(result)
            return None
        return result

    # -- what takes its time

    def do_finish(self, job: int) -> Any:
        """Wait for what goes on beside; its outcome."""
        return self._jobs.finish(job)

    def do_connect(self, work: str, target: tuple[str, str], arguments: dict[str, Any]) -> Any:
        """One of the functions of :mod:`traffic` that connect."""
        return getattr(traffic, work)(tuple(target), **arguments)

    def do_accept(self, work: str, port: int, type: int, arguments: dict[str, Any]) -> Any:
        """One of the functions of :mod:`traffic` that accept."""
        with traffic.listen("any", port, type) as listener:
            return getattr(traffic, work)(listener, **arguments)

    def do_resolve(self, vm: str, service: str) -> tuple[str, str]:
        """What a name means."""
        return hvsock.resolve((vm, service))

    # -- the system

    def do_facts(self) -> dict[str, Any]:
        """What tells one start of the guest from another, and its kernel."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return {"boot": boot, "kernel": os.uname().release, "cpus": os.cpu_count()}

    def do_run(self, data: bytes, payload: list[bytes], command: list[str], seconds: float) -> int:
        """Run a program to its end, with those bytes as its input; its exit code."""
        done = subprocess.run(
            command, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False
        )
        payload.append(done.stdout)
        return done.returncode

    def do_start(self, command: list[str]) -> int:
        """Start a program; returns its process id."""
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._processes[process.pid] = process
        return process.pid

    def do_kill(self, pid: int) -> int:
        """End a program that was started, by SIGKILL; its exit code."""
        process = self._processes.pop(pid)
        process.kill()
        return process.wait()

    def do_reboot(self) -> None:
        """Start the guest anew, as soon as this is answered."""
        subprocess.Popen(["/bin/sh", "-c", "sleep 0.3; exec reboot -f"])


def main() -> None:
    """Serve until killed."""
    agent = Agent()
    with hvsock.create_server(("any", str(PORT)), backlog=256) as listener:
        print("the agent listens", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=agent.serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
