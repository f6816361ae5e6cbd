"""The device of a VM, played without a VM: what a broker and a connector see of one."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.fabric import client, messages, passing
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import DeviceCourier, Established, Flag, Notice, Op, Reply, Request

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

PATIENCE_SECONDS = 30.0
"""What nothing here takes on a busy machine; more of it is a failure."""


@dataclass
class DeviceEnd:
    """The device's end of a connection, pending or established.

    Attributes:
        sock: the end.
        mark: the end mark that the other end looks at.
        peer_mark: the end mark of a connecting device, for the device that accepts.
        courier: what came with it, where the device accepts.
    """

    sock: socket.socket
    mark: EndMark = field(default_factory=EndMark.new)
    peer_mark: EndMark | None = None
    courier: DeviceCourier | None = None

    def establish(self, flags: Flag = Flag.NONE) -> None:
        """The guest has accepted: the connector is connected."""
        socket.send_fds(self.sock, [Established(flags).pack()], [self.mark.fileno()])
        block = self.sock.recv(messages.REQUEST_BYTES)
        assert self.courier is not None
        assert messages.carries(block, self.courier.token)

    def refuse(self, code: int = errno.ECONNREFUSED, text: str = "the guest refused it") -> None:
        """The guest has refused."""
        self.sock.sendall(Reply.refuse(code, text).pack())
        self.close()

    def end(self) -> None:
        """The guest has closed its end gracefully."""
        self.mark.set()
        self.close()

    def close(self) -> None:
        """Close the end with its marks: a reset, as the device's death is."""
        self.sock.close()
        self.mark.close()
        if self.peer_mark is not None:
            self.peer_mark.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FakeDevice:
    """A device that serves the VM in `folder`, one step at a time.

    Args:
        folder: the partition's folder.
        backlog: couriers that may wait.
    """

    def __init__(self, folder: str, backlog: int = 128) -> None:
        self.folder = folder
        binding = client.bind_device(folder)
        self.listener = socket.socket(fileno=binding.descriptor)
        try:
            self.listener.settimeout(PATIENCE_SECONDS)
            self.listener.listen(backlog)
            client.listen(folder, binding.listener_id, backlog)
        except BaseException:
            self.listener.close()
            raise

    def close(self) -> None:
        """Serve no more; the ends that were taken stay."""
        self.listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def quiet(self, seconds: float = 0.0) -> bool:
        """Whether nothing comes within that time."""
        return not select.select([self.listener], [], [], seconds)[0]

    def take(self) -> DeviceEnd | Notice:
        """What comes next; a courier of a broker that died before it said anything is none."""
        data = b""
        while not data:
            link, _ = self.listener.accept()
            with link:
                link.settimeout(PATIENCE_SECONDS)
                data, descriptors, _ = passing.receive(link, messages.DEVICE_MESSAGE_BYTES, 3)
                done = link.recv(2)
        message = messages.parse_device_message(data)
        assert done in (messages.DONE, b""), "nothing follows DONE; a broker that died sends none"
        if isinstance(message, Notice):
            assert not descriptors
            return message
        end, *marks = descriptors
        assert len(marks) == bool(message.flags & Flag.END_MARK)
        sock = socket.socket(fileno=end)
        sock.settimeout(PATIENCE_SECONDS)
        peer_mark = EndMark(marks[0]) if marks else None
        return DeviceEnd(sock, peer_mark=peer_mark, courier=message)

    def take_end(self) -> DeviceEnd:
        """The connection that comes next."""
        found = self.take()
        assert isinstance(found, DeviceEnd)
        return found

    def take_notice(self) -> Notice:
        """The notice that comes next."""
        found = self.take()
        assert isinstance(found, Notice)
        return found

    @contextlib.contextmanager
    def serving(self, handle: Callable[[DeviceEnd], None]) -> Iterator[None]:
        """Give each connection to `handle`, one after the other in a thread; it closes it."""
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                if not self.quiet(0.01):
                    handle(self.take_end())

        thread = threading.Thread(target=serve, name="fake device")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def begin_connect(
    folder: str,
    address: tuple[str, str],
    *,
    type_: int = socket.SOCK_STREAM,
    flags: Flag = Flag.END_MARK,
    descriptors: list[int] | None = None,
) -> DeviceEnd:
    """Begin the connect of a guest, with an end mark; `descriptors` go along instead where they are given."""
    sock = socket.socket(socket.AF_UNIX, type_)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, client.MINIMAL_BUFFER)
    end = DeviceEnd(sock)
    along = [end.mark.fileno()] if descriptors is None else descriptors

    def send(data: bytes) -> int:
        return socket.send_fds(sock, [data], along) if along else sock.send(data)

    token = os.urandom(16)
    wanted = Address(VmId(address[0]), ServiceId(address[1]))
    client.start_connect(sock.connect, send, folder, Request(Op.CONNECT, wanted, type_, flags, 2000, token))
    sock.settimeout(PATIENCE_SECONDS)
    return end


def connected(end: DeviceEnd) -> Established:
    """Wait until a connect of :func:`begin_connect` is established; what its accepter says."""
    poll = select.poll()
    poll.register(end.sock, select.POLLOUT)
    ((_, events),) = poll.poll(PATIENCE_SECONDS * 1000)
    assert not events & select.POLLERR, "it was refused"
    return Established.unpack(end.sock.recv(messages.ESTABLISHED_BYTES))


def refused(end: DeviceEnd) -> int:
    """Wait until a connect of :func:`begin_connect` is refused; the errno."""
    poll = select.poll()
    poll.register(end.sock, select.POLLOUT)
    ((_, events),) = poll.poll(PATIENCE_SECONDS * 1000)
    assert events & select.POLLERR, "it was not refused"
    end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    data = end.sock.recv(messages.REPLY_HEADER_BYTES + messages.MAX_REFUSAL_BYTES)
    end.close()
    return messages.parse_reply_header(data[: messages.REPLY_HEADER_BYTES])[0]
