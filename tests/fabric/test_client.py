"""One request and its answer, also from a broker that is silent, strange or gone."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

import hvsock
from hvsock import errors
from hvsock.addresses import HV_GUID_PARENT, HV_GUID_WILDCARD, ServiceId
from hvsock.errors import HvsockError, NoFabricError, NotFoundError, ProtocolError, UsageError
from hvsock.fabric import client, messages
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.fabric.messages import Op, Reply, Request
from tests.fabric.peers import fails_with

ADDRESS = hvsock.Address(HV_GUID_WILDCARD, ServiceId.new())
BINDING = messages.pack_binding(bytes(16), ADDRESS.service_id)


@contextmanager
def false_broker(folder: Path, answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A partition's folder in which something answers one request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "stream"))
        listener.listen()

        def serve() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(messages.REQUEST_BYTES, socket.MSG_WAITALL)
                answer(link)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield str(folder)
        finally:
            thread.join()


def with_descriptors(data: bytes, count: int) -> Callable[[socket.socket], object]:
    """Answers with `data` and so many descriptors."""

    def answer(link: socket.socket) -> None:
        with open(os.devnull) as file:
            socket.send_fds(link, [data], [file.fileno()] * count)

    return answer


def says(data: bytes) -> Callable[[socket.socket], object]:
    """Answers with `data`."""
    return lambda link: link.sendall(data)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense and more of it",
        b"HVS\x02" + bytes(8),
        Reply(0, b"{}").pack()[:5],
        Reply(0, b'{"a": 1}').pack()[:-1],
        Reply(0, b"{").pack(),
        Reply(0, b"\xff").pack(),
        Reply(22, b"[]").pack(),
        Reply(22, b"{}").pack(),
        Reply(22, b'{"error": [], "text": ""}').pack(),
        Reply(errno.EPROTO, b"speak up").pack(),
    ],
)
def test_an_answer_to_a_call_that_is_none_is_a_protocol_error(data: bytes, tmp_path: Path) -> None:
    with false_broker(tmp_path, says(data)) as folder, pytest.raises(ProtocolError):
        client.call(folder, "ping")


@pytest.mark.parametrize("name", ["HvsockError", "nonsense", "annotations", "__name__", "OSError"])
def test_an_error_of_no_class_of_ours_is_an_hvsock_error(name: str, tmp_path: Path) -> None:
    body = f'{{"error": "{name}", "text": "why"}}'.encode()
    with (
        false_broker(tmp_path, says(Reply(22, body).pack())) as folder,
        pytest.raises(HvsockError, match="why") as why,
    ):
        client.call(folder, "ping")
    assert type(why.value) is HvsockError


def test_each_error_of_ours_comes_as_it_is(tmp_path: Path) -> None:
    for number, kind in enumerate((UsageError, NotFoundError, errors.DuplicateError, errors.RefusedError)):
        folder = tmp_path / str(number)
        folder.mkdir()
        body = f'{{"error": "{kind.__name__}", "text": "why"}}'.encode()
        with false_broker(folder, says(Reply(22, body).pack())) as path, pytest.raises(kind, match="why"):
            client.call(path, "ping")


def test_a_broker_that_ends_is_no_fabric(tmp_path: Path) -> None:
    with false_broker(tmp_path, lambda link: None) as folder, pytest.raises(NoFabricError, match="ended before"):
        client.call(folder, "ping")


@pytest.mark.parametrize("part", [b"", Reply(0, b"{}").pack()[:-1]])
def test_a_broker_that_is_silent_is_not_waited_for_without_end(
    part: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.1)
    go_on = threading.Event()

    def answer(link: socket.socket) -> None:
        link.sendall(part)
        go_on.wait(10)

    with false_broker(tmp_path, answer) as folder:
        with pytest.raises(NoFabricError, match="did not answer"):
            client.call(folder, "ping")
        go_on.set()


def test_a_broker_that_answers_by_drops_has_no_more_time(tmp_path: Path) -> None:
    def answer(link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for byte in Reply(0, bytes(4096)).pack():
                link.send(bytes([byte]))
                time.sleep(0.02)

    with false_broker(tmp_path, answer) as folder, pytest.raises(NoFabricError, match=r"did not answer in 0\.2 s"):
        client.call(folder, "ping", within=0.2)


def test_a_full_queue_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REPLY_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "stream"))
        listener.listen(0)
        first.connect(str(tmp_path / "stream"))
        with fails_with(errno.ENOBUFS):
            client.bind(str(tmp_path), socket.SOCK_STREAM, ADDRESS)
        with pytest.raises(NoFabricError, match="queue"):
            client.call(str(tmp_path), "ping")
        monkeypatch.setattr(client, "REPLY_SECONDS", 10.0)

        def make_room() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as link:
                link.recv(messages.REQUEST_BYTES, socket.MSG_WAITALL)
                link.sendall(Reply(0, b"5").pack())

        thread = threading.Timer(0.05, make_room)
        thread.start()
        assert client.call(str(tmp_path), "ping") == 5
        thread.join()


def test_descriptors_that_nobody_asked_for_are_closed(tmp_path: Path) -> None:
    for number, data in enumerate((Reply(0, b"5").pack(), Reply(0, b"{").pack(), b"nonsense and so on")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with false_broker(folder, with_descriptors(data, 3)) as path:
            if number == 0:
                assert client.call(path, "ping") == 5
            else:
                with pytest.raises(ProtocolError):
                    client.call(path, "ping")


@pytest.mark.parametrize(
    ("body", "count", "kind"),
    [(BINDING, 0, OSError), (BINDING[:-1], 1, ProtocolError), (b"", 1, ProtocolError)],
    ids=["no-descriptor", "cut", "empty"],
)
def test_an_answer_to_a_bind_that_is_none_leaves_nothing(
    body: bytes, count: int, kind: type[Exception], tmp_path: Path
) -> None:
    data = Reply(0, body).pack()
    answer = with_descriptors(data, count) if count else says(data)
    with false_broker(tmp_path, answer) as folder, pytest.raises(kind):
        client.bind(folder, socket.SOCK_STREAM, ADDRESS)


def test_a_refused_bind_keeps_no_descriptor(tmp_path: Path) -> None:
    answer = with_descriptors(Reply.refuse(errno.EACCES, "no").pack(), 1)
    with false_broker(tmp_path, answer) as folder, fails_with(errno.EACCES, "no"):
        client.bind(folder, socket.SOCK_STREAM, ADDRESS)


def test_a_connect_that_cannot_begin_tells_why(tmp_path: Path) -> None:
    request = Request(Op.CONNECT, hvsock.Address(HV_GUID_PARENT, ADDRESS.service_id), socket.SOCK_STREAM)

    def start(connect: OSError | None, sent: int | OSError = messages.REQUEST_BYTES) -> None:
        def connecting(path: str) -> None:
            if connect is not None:
                raise connect

        def sending(data: bytes) -> int:
            if isinstance(sent, OSError):
                raise sent
            return sent

        client.start_connect(connecting, sending, str(tmp_path), request)

    start(None)
    for code, shown in (
        (errno.EAGAIN, errno.ENOBUFS),
        (errno.ENOENT, errno.ENETUNREACH),
        (errno.ECONNREFUSED, errno.ENETUNREACH),
        (errno.EACCES, errno.EACCES),
        (errno.EISCONN, errno.EISCONN),
    ):
        with fails_with(shown):
            start(OSError(code, os.strerror(code)))
    with fails_with(errno.ENETUNREACH):
        start(None, BrokenPipeError(errno.EPIPE, "the broker went away"))
    with fails_with(errno.ENOBUFS):
        start(None, 100)


def test_an_address_is_resolved_without_a_broker_where_no_name_is_in_it(tmp_path: Path) -> None:
    assert hvsock.resolve("hvsocket://parent/5", str(tmp_path)) == (HV_GUID_PARENT, ServiceId.from_port(5))
    for address in ("hvsocket://parent", "http://parent/5", "hvsocket://a/b/c"):
        with pytest.raises(UsageError):
            hvsock.resolve(address, str(tmp_path))
    with pytest.raises(NoFabricError):
        hvsock.resolve(("parent", "some name"), str(tmp_path))


def test_many_threads_ask_at_once(fabric: EmbeddedFabric) -> None:
    found: list[object] = []
    threads = [
        threading.Thread(
            target=lambda: found.extend(client.call(fabric.host.folder, "ping")["pid"] for _ in range(50))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [os.getpid()] * 400
