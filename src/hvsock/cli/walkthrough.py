"""What `hvsock demo` does: the walk through the original document, in a fabric of its own.

Every number in the result was measured at one of the two ends; nothing is taken for granted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import struct
import sys
import threading
import time
from typing import Any, Final

import hvsock
from hvsock.addresses import ServiceId, describe_vm_id
from hvsock.errors import HvsockError
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.sockets.socket import socket

from .steps import Audience, Steps, check
from .walkthrough_vm import VmPart

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

SERVICE_NAME: Final = "HV Socket Demo"
"""The friendly name that the original document registers."""
SERVICE_PORT: Final = 2761
"""Port by which Linux guests reach it: the example of the original document."""
PARTITION_NAME: Final = "demo-vm"
BULK_BYTES: Final = 256 << 20
"""Bytes of the long transfer."""
BLOCK_BYTES: Final = 1 << 20
PATIENCE_SECONDS: Final = 30.0
"""How long any one call on a socket may take; each takes milliseconds on a machine at rest."""

_COUNT = struct.Struct("<Q")
_QUESTION: Final = "Gr\u00fc\u00dfe from the guest, \u4f60\u597d"
_ANSWER: Final = "Hello from the host"


class Walk:
    """One walk.

    Args:
        audience: is told of every step.
        bulk_bytes: bytes of the long transfer.
        with_vm: whether to boot a virtual machine in the end, where that can be.

    Attributes:
        service: the service's counters in the end, as the broker reports them.
    """

    def __init__(self, audience: Audience, bulk_bytes: int = BULK_BYTES, *, with_vm: bool = False) -> None:
        self.service: dict[str, Any] = {}
        self._steps = Steps(audience)
        self._bulk_bytes = bulk_bytes
        self._with_vm = with_vm
        self._vm: dict[str, Any] | None = None
        self._skipped: list[str] = []
        self._connections = 0
        self._sha256_match: bool | None = None
        self._transport: str | None = None
        self._service_id: str | None = None
        self._service_name: str | None = None

    def run(self) -> dict[str, Any]:
        """Walk; returns what was measured, as `--json` prints it."""
        started = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                self._walk(stack)
            sent, received = self._steps.sent, self._steps.received
            check(sent == received, f"{sent} bytes were sent, {received} received")
        except (HvsockError, OSError) as error:
            self._steps.error = self._steps.error or str(error) or type(error).__name__
        return {
            "ok": self._steps.error is None and self._sha256_match is True,
            "transport": self._transport,
            "service_id": self._service_id,
            "service_name": self._service_name,
            "bytes_sent": self._steps.sent,
            "bytes_received": self._steps.received,
            "sha256_match": self._sha256_match is True,
            "seconds": round(time.monotonic() - started, 3),
            "connections": self._connections,
            "counters": self.service,
            "vm": self._vm,
            "skipped": self._skipped,
            "steps": self._steps.taken,
            "error": self._steps.error,
        }

    def _walk(self, stack: contextlib.ExitStack) -> None:
        with self._steps.step("Bring a fabric up") as found:
            fabric = stack.enter_context(EmbeddedFabric())
            answer = client.call(fabric.host.folder, "ping")
            found(f"a broker answers (process {answer['pid']})")
        with self._steps.step("Register the service") as found:
            entry = fabric.registry.get(fabric.register(SERVICE_NAME, port_alias=SERVICE_PORT).id)
            check(entry is not None, "the registry does not have it")
            assert entry is not None
            self._service_id, self._service_name = str(entry.id), entry.name
            found(f"{entry.name} = {entry.id}")
        with self._steps.step("Create a partition") as found:
            guest = fabric.create_partition(PARTITION_NAME)
            found(f"{guest.name} = {guest.id}")
        with self._steps.step("Create the sockets, bind, listen") as found:
            on_host = self._listener(stack, fabric.host, hvsock.HV_GUID_WILDCARD)
            on_guest = self._listener(stack, guest, hvsock.HV_GUID_PARENT)
            found(f"host on {_word(on_host)}, {guest.name} on {_word(on_guest)}")
        with self._steps.step("Connect by wildcard") as found:
            upward = self._connect(stack, guest, hvsock.HV_GUID_PARENT, on_host)
            self._check_addresses(upward[1], guest.id, upward[0], hvsock.HV_GUID_PARENT)
            self._check_wildcard_is_no_destination(guest)
            found(f"{guest.name} to parent; the host sees {guest.name}'s VmId")
        with self._steps.step("Connect by VmId") as found:
            downward = self._connect(stack, fabric.host, guest.id, on_guest)
            self._check_addresses(downward[0], guest.id, downward[1], hvsock.HV_GUID_PARENT)
            found(f"host to {guest.name}'s VmId; {guest.name} sees its parent")
        with self._steps.step("Exchange text") as found:
            for asking, answering in (upward, downward):
                self._say(asking, answering, _QUESTION)
                self._say(answering, asking, _ANSWER)
            found(f"\u201c{_QUESTION}\u201d, \u201c{_ANSWER}\u201d; on both")
        with self._steps.step("Wait with select") as found:
            found(self._select(stack, guest, on_host))
        with self._steps.step(f"Exchange {self._bulk_bytes >> 20} MiB") as found:
            found(self._bulk(*upward))
        with self._steps.step("Close gracefully") as found:
            found(self._close(guest, on_host, downward))
            for end in upward:
                end.close()
        with self._steps.step("Read the counters") as found:
            found(self._count(fabric))
        if self._with_vm:
            part = VmPart(self._steps, fabric, ServiceId(str(self._service_id)))
            self._vm, why_not = part.run()
            if self._vm is None:
                self._skipped.append(why_not)
            else:
                self._transport = self._vm["transport"]

    # -- the steps

    def _listener(self, stack: contextlib.ExitStack, where: PartitionHandle, vm_id: str) -> socket:
        listener = stack.enter_context(_new_socket(where))
        listener.bind((vm_id, str(self._service_id)))
        listener.listen()
        check(listener.getsockname() == (vm_id, self._service_id), "the listener has another address")
        return listener

    def _connect(
        self, stack: contextlib.ExitStack, source: PartitionHandle, vm_id: str, listener: socket
    ) -> tuple[socket, socket]:
        """A connection: the connecting end, and the accepted one."""
        near = stack.enter_context(_new_socket(source))
        near.connect((vm_id, str(self._service_id)))
        far, _ = listener.accept()
        stack.enter_context(far).settimeout(PATIENCE_SECONDS)
        self._connections += 1
        return near, far

    def _check_addresses(self, host_end: socket, guest_id: str, guest_end: socket, parent: str) -> None:
        seen = (host_end.getpeername() if host_end.getpeername()[0] == guest_id else host_end.getsockname())[0]
        check(seen == guest_id, f"the host's end shows {seen}, not the partition's VmId")
        seen = guest_end.getpeername()[0]
        check(seen == parent, f"the guest's end shows {seen}, not its parent")

    def _check_wildcard_is_no_destination(self, guest: PartitionHandle) -> None:
        with _new_socket(guest) as sock:
            code = sock.connect_ex((hvsock.HV_GUID_WILDCARD, str(self._service_id)))
        check(code != 0, "a connect to the wildcard itself was not refused")

    def _say(self, speaker: socket, hearer: socket, text: str) -> None:
        data = text.encode()
        self._send(speaker, data)
        heard = b""
        while len(heard) < len(data):
            heard += self._receive(hearer, len(data) - len(heard))
        check(heard.decode(errors="replace") == text, f"{text!r} came as {heard!r}")

    def _select(self, stack: contextlib.ExitStack, guest: PartitionHandle, listener: socket) -> str:
        asking = stack.enter_context(_new_socket(guest))
        asking.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            asking.connect((hvsock.HV_GUID_PARENT, str(self._service_id)))
        readable, writable, _ = select.select([listener], [asking], [], PATIENCE_SECONDS)
        if not readable:
            readable, _, _ = select.select([listener], [], [], PATIENCE_SECONDS)
        if not writable:
            _, writable, _ = select.select([], [asking], [], PATIENCE_SECONDS)
        check(listener in readable, "the listener did not become readable")
        check(asking in writable, "the connecting socket did not become writable")
        code = asking.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR)
        check(code == 0, f"the connect failed: {os.strerror(code)}")
        answering, _ = listener.accept()
        stack.enter_context(answering).settimeout(PATIENCE_SECONDS)
        self._connections += 1
        check(select.select([asking], [], [], 0)[0] == [], "it is readable with nothing to read")
        started = time.monotonic()
        self._send(answering, _ANSWER.encode())
        check(select.select([asking], [], [], PATIENCE_SECONDS)[0] == [asking], "it did not become readable")
        microseconds = (time.monotonic() - started) * 1e6
        check(self._receive(asking, 100) == _ANSWER.encode(), "the text came wrong")
        asking.close()
        answering.close()
        return f"quiet before, readable {microseconds:.0f} us after a send"

    def _bulk(self, asking: socket, answering: socket) -> str:
        """Send the long transfer, end that direction, and have count and checksum come back the other way."""
        outcome: list[bytes | BaseException] = []

        def send() -> None:
            try:
                outcome.append(self._send_bulk(asking))
                asking.shutdown(hvsock.SHUT_WR)
            except BaseException as error:
                outcome.append(error)
                asking.close()

        started = time.monotonic()
        sender = threading.Thread(target=send, name="hvsock-demo")
        sender.start()
        try:
            digest, count = self._receive_all(answering, self._bulk_bytes)
        except BaseException:
            answering.close()  # so that the sender ends
            raise
        finally:
            sender.join()
        seconds = time.monotonic() - started
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        self._send(answering, _COUNT.pack(count) + digest)
        answering.shutdown(hvsock.SHUT_WR)
        report = b"".join(iter(lambda: self._receive(asking, 100), b""))
        check(report[: _COUNT.size] == _COUNT.pack(self._bulk_bytes), f"{count} bytes arrived")
        self._sha256_match = report[_COUNT.size :] == outcome[0]
        check(self._sha256_match, "the checksums differ")
        return f"SHA-256 {digest.hex()[:16]}... at both ends, {self._bulk_bytes / seconds / (1 << 20):.0f} MiB/s"

    def _send_bulk(self, sock: socket) -> bytes:
        block = bytearray(os.urandom(BLOCK_BYTES))
        checksum = hashlib.sha256()
        left = self._bulk_bytes
        while left:
            _COUNT.pack_into(block, 0, left)  # so that no two blocks are the same
            part = memoryview(block)[: min(left, BLOCK_BYTES)]
            checksum.update(part)
            self._send(sock, part)
            left -= len(part)
        return checksum.digest()

    def _receive_all(self, sock: socket, expected: int) -> tuple[bytes, int]:
        """Receive up to the end of stream; returns checksum and count.

        Raises:
            OSError: it ends with a reset.
        """
        buffer = memoryview(bytearray(BLOCK_BYTES))
        checksum = hashlib.sha256()
        count = 0
        while received := sock.recv_into(buffer):
            checksum.update(buffer[:received])
            count += received
            self._steps.received += received
            if expected:
                self._steps.audience.progress(count, expected)
        return checksum.digest(), count

    def _close(self, guest: PartitionHandle, listener: socket, open_one: tuple[socket, socket]) -> str:
        """Close while data are under way and nobody reads yet; then they must all be there, in both directions."""
        counts = []
        for from_guest in (True, False):
            with contextlib.ExitStack() as stack:
                asking, answering = self._connect(stack, guest, hvsock.HV_GUID_PARENT, listener)
                leaving, staying = (asking, answering) if from_guest else (answering, asking)
                digest, sent = self._fill(leaving)
                leaving.close()
                found, received = self._receive_all(staying, 0)
                check((found, received) == (digest, sent), f"{sent} bytes before the close, {received} after")
                counts.append(received)
        near, far = open_one
        near.shutdown(hvsock.SHUT_WR)
        check(self._receive(far, 1) == b"", "there is more than an end of stream")
        self._say(far, near, _ANSWER)  # the other direction goes on
        far.close()
        check(self._receive(near, 1) == b"", "there is more than an end of stream")
        near.close()
        return f"{counts[0]} and {counts[1]} bytes under way at the close, all of them arrived"

    def _fill(self, sock: socket) -> tuple[bytes, int]:
        """Send what goes in while nobody reads; returns checksum and count."""
        checksum, count = hashlib.sha256(), 0
        sock.setblocking(False)
        data = os.urandom(BLOCK_BYTES)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent = sock.send(data)
                checksum.update(data[:sent])
                count += sent
        self._steps.sent += count
        return checksum.digest(), count

    def _count(self, fabric: EmbeddedFabric) -> str:
        status = client.call(fabric.host.folder, "status")
        self._transport = status["transport"]
        mine = [one for one in status["services"] if one["name"] == self._service_name]
        check(len(mine) == 1, f"{self._service_name} has {len(mine)} lines in the counters")
        self.service = mine[0]
        check(self.service["id"] == self._service_id, "the counters have another id under that name")
        counted = self.service["accepted"]
        check(counted == self._connections, f"{counted} connections counted, {self._connections} made")
        check(self.service["open"] == 0, f"{self.service['open']} connections are open, and all were closed")
        refused = sum(self.service["refused"].values())
        check(refused == 1, f"{refused} refusals counted, 1 made")
        listeners = self.service["listeners"]
        check(listeners == 2, f"{listeners} listeners counted, 2 made")
        return f"{counted} accepted, {refused} refused, {listeners} listeners, none open"

    # -- measured

    def _send(self, sock: socket, data: bytes | memoryview) -> None:
        sock.sendall(data)
        self._steps.sent += len(data)

    def _receive(self, sock: socket, most: int) -> bytes:
        data: bytes = sock.recv(most)
        self._steps.received += len(data)
        return data


def _new_socket(where: PartitionHandle) -> socket:
    sock = socket(hvsock.AF_HYPERV, hvsock.SOCK_STREAM, hvsock.HV_PROTOCOL_RAW, partition=where.folder)
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def _word(listener: socket) -> str:
    return describe_vm_id(listener.getsockname()[0])
