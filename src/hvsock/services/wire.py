"""gRPC over any connected socket: the one module that knows grpclib.

Each connection has its own HTTP/2 state, its own streams and its own caller. What grpclib leaves open towards a
peer that means harm is bounded here: a message's length, what may wait to be sent, and what an unknown frame does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket as _stdlib
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Final, Protocol

from grpclib import client, protocol, server
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.exceptions import ProtocolError as WireError
from grpclib.metadata import Deadline
from h2.config import H2Configuration
from h2.settings import SettingCodes, Settings

from hvsock.errors import (
    BusyError,
    DuplicateError,
    HvsockError,
    LostError,
    NegotiationError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
    RefusedError,
    RemoteError,
    StateError,
    UsageError,
)

from .messages import Codec
from .service import Operation

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 16
"""Operations that a peer may have under way on one connection; it waits with more."""
STREAM_WINDOW_BYTES: Final = 1 << 17
"""What it may send ahead for one operation: enough for some round trips of an emulated guest."""
CONNECTION_WINDOW_BYTES: Final = MAX_STREAMS * STREAM_WINDOW_BYTES
"""What it may send ahead on one connection, 2 MiB: operations that nobody reads leave room for the others."""
SMALL_BYTES: Final = 1 << 16
"""Longest message that is gathered next to others. Longer ones are gathered one at a time on each connection: a
peer makes this side hold no more than the window, these, and one message of the longest kind, some 4 MiB."""
MAX_UNSENT_BYTES: Final = 4 << 20
"""What may wait to be sent. Operations wait when 64 KiB do; only answers to a peer that floods this side with
pings or settings, and reads nothing, come so far."""
MAX_ERROR_CHARACTERS: Final = 1000
"""Longest text of an error that goes over the wire; longer ones are cut."""
_LENGTH = struct.Struct("!xI")
_HEAD_BYTES = _LENGTH.size

_STATUS: Final[tuple[tuple[type[HvsockError], Status], ...]] = (
    (NegotiationError, Status.OUT_OF_RANGE),
    (NotFoundError, Status.NOT_FOUND),
    (DuplicateError, Status.ALREADY_EXISTS),
    (UsageError, Status.INVALID_ARGUMENT),
    (RefusedError, Status.PERMISSION_DENIED),
    (BusyError, Status.RESOURCE_EXHAUSTED),
    (NotReadyError, Status.UNAVAILABLE),
    (StateError, Status.FAILED_PRECONDITION),
    (ProtocolError, Status.DATA_LOSS),
)
"""How errors go over the wire; the first that fits counts."""
_ERRORS: Final = {status: kind for kind, status in _STATUS}
_CARDINALITY: Final = {(one.client_streaming, one.server_streaming): one for one in Cardinality}


class Served(Protocol):
    """What answers one operation on one connection."""

    def __call__(self, questions: AsyncIterator[Any], /) -> AsyncGenerator[Any, None]:
        """The answers to the questions, of which there is one where the operation has one."""


class _Encoding(CodecBase):
    """The messages of one service for grpclib."""

    __content_subtype__ = "proto"

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def encode(self, message: Any, message_type: Any) -> bytes:
        return self._codec.encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return self._codec.decode(message_type, data)


def _configuration() -> Configuration:
    # the window of a stream goes with the other settings, see _Connection.connection_made
    return Configuration(http2_connection_window_size=CONNECTION_WINDOW_BYTES, http2_stream_window_size=65535)


def _h2(*, client_side: bool) -> H2Configuration:
    # the headers are grpclib's own, or checked by it; h2's checks cost more than all the rest of a call
    return H2Configuration(
        client_side=client_side,
        header_encoding="ascii",
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )


class _Connection(protocol.H2Protocol):
    """One connection, which ends when its peer does what no peer of ours does."""

    def __init__(self, handler: Any, config: Configuration, h2_config: H2Configuration) -> None:
        super().__init__(handler, config, h2_config)
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        super().connection_made(transport)
        h2 = self.connection._connection
        # as the first values, not as changes, which would count only once the peer has agreed
        h2.local_settings = Settings(
            client=h2.config.client_side,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: h2.DEFAULT_MAX_HEADER_LIST_SIZE,
            },
        )
        h2.update_settings(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            }
        )
        self.connection.flush()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            super().data_received(data)
        except Exception as error:  # whatever grpclib makes of it, it is the peer's doing
            log.info("a peer broke HTTP/2, its connection is dropped: %s: %s", type(error).__name__, error)
            self.abort()
            return
        if not self._transport.is_closing() and self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.info("a peer asks without reading the answers, its connection is dropped")
            self.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """End it at once."""
        self.processor.close(reason="the connection was dropped")
        if self._transport is not None:
            self._transport.abort()


async def _bounded(stream: Any, most: int, gathering: asyncio.Lock) -> bytes | None:
    """The next message on a stream, or None at its end.

    Args:
        stream: grpclib's.
        most: longest message, in bytes.
        gathering: the connection's, held while a message beyond SMALL_BYTES comes in.

    Raises:
        ProtocolError: it has more than `most` bytes, is compressed, or ends early; the sender's doing.
    """
    try:
        head = await stream.recv_data(_HEAD_BYTES)
        if not head:
            return None
        (length,) = _LENGTH.unpack(head)
        if head[0]:
            raise ProtocolError("a compressed message, which nobody asked for")
        if length > most:
            raise ProtocolError(f"a message of {length} bytes; {most} is the most")
        async with gathering if length > SMALL_BYTES else contextlib.nullcontext():
            data: bytes = await stream.recv_data(length)
    except AssertionError:
        raise ProtocolError("a message ended early") from None
    if len(data) != length:
        raise ProtocolError("a message ended early")
    return data


# -- serving


def handlers_of(
    prefix: str, operations: Mapping[Operation[Any, Any], Served], codec: Codec, gathering: asyncio.Lock
) -> dict[str, Handler]:
    """The handlers of one service on one connection, by path.

    Args:
        prefix: the service's name on the wire.
        operations: what answers each of its operations.
        codec: turns its messages into bytes.
        gathering: one for all services of the connection, see SMALL_BYTES.
    """
    encoding = _Encoding(codec)
    return {
        f"/{prefix}/{operation.wire_name}": Handler(
            _handler(operation, served, encoding, gathering),
            _CARDINALITY[operation.many_questions, operation.many_answers],
            operation.question,
            operation.answer,
        )
        for operation, served in operations.items()
    }


def _handler(
    operation: Operation[Any, Any], served: Served, encoding: _Encoding, gathering: asyncio.Lock
) -> Callable[[Any], Any]:
    async def handle(stream: server.Stream[Any, Any]) -> None:
        stream._codec = encoding
        try:
            async with contextlib.aclosing(served(_questions(stream, operation, encoding, gathering))) as answers:
                async for answer in answers:
                    await stream.send_message(answer)
                    # what is sent into an ended connection is dropped without a pause: let the end be heard of
                    await asyncio.sleep(0)
        except (TimeoutError, GRPCError, StreamTerminatedError, WireError):
            raise
        except HvsockError as error:
            raise _as_status(error) from None
        except OSError as error:
            raise GRPCError(Status.UNKNOWN, _cut(f"{error.strerror or error} (errno {error.errno})")) from None
        except Exception as error:
            log.exception("%s failed", operation.policy_name)
            raise GRPCError(Status.INTERNAL, f"{operation.policy_name} failed; its side's log says why") from error

    return handle


async def _questions(
    stream: server.Stream[Any, Any],
    operation: Operation[Any, Any],
    encoding: _Encoding,
    gathering: asyncio.Lock,
) -> AsyncIterator[Any]:
    while (data := await _bounded(stream._stream, operation.max_bytes, gathering)) is not None:
        yield encoding.decode(data, operation.question)
        if not operation.many_questions:
            return


def _as_status(error: HvsockError) -> GRPCError:
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return GRPCError(status, _cut(str(error)))
    return GRPCError(Status.UNKNOWN, _cut(str(error)))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[: MAX_ERROR_CHARACTERS - 3] + "..."


class ServerConnection(_Connection):
    """The serving side of one connection, as asyncio's protocol.

    Args:
        handlers: what it serves, by path.
    """

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handler = server.Handler(handlers, _Encoding(None), None, _DispatchServerEvents())  # type: ignore[arg-type]
        super().__init__(self._handler, _configuration().__for_server__(), _h2(client_side=False))

    @property
    def was_asked(self) -> bool:
        """Whether any operation was ever asked for."""
        return self.connection.streams_started > 0

    async def wait_ended(self) -> None:
        """Wait until the connection has ended and its handlers with it."""
        await self.ended
        await self._handler.wait_closed()


# -- asking


class _Channel(client.Channel):
    """A channel over one socket that is connected already."""

    def __init__(self, connection: _Connection, codec: CodecBase) -> None:
        super().__init__(codec=codec)
        self._protocol = connection
        self._authority = "hvsock"  # HTTP/2 wants one; there is nothing to tell apart by it

    async def _create_connection(self) -> protocol.H2Protocol:
        raise ConnectionResetError(errno.ECONNRESET, "the connection has ended")


class ClientConnection:
    """The asking side of one connection.

    Args:
        connection: the protocol; see :meth:`open`.
    """

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._channels: dict[Codec, _Channel] = {}
        self._gathering = asyncio.Lock()

    @classmethod
    async def open(cls, sock: _stdlib.socket) -> ClientConnection:
        """Speak HTTP/2 over a connected, non-blocking socket, which this object owns from now on."""
        owned = True

        def hand_over() -> _Connection:
            nonlocal owned
            owned = False
            return _Connection(client.Handler(), _configuration().__for_client__(), _h2(client_side=True))

        try:
            _, made = await asyncio.get_running_loop().create_connection(hand_over, sock=sock)
        finally:
            if owned:
                sock.close()
        return cls(made)

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return not self._connection.ended.done() and not self._connection.is_closed

    async def wait_ended(self) -> None:
        """Wait until it cannot be asked any more."""
        await asyncio.wait({self._connection.ended})

    async def close(self) -> None:
        """End it, and wait until its socket is closed. Calling this twice is fine."""
        for channel in self._channels.values():
            channel.close()
        self._connection.abort()  # a peer that reads nothing would keep it open for as long as it likes
        await self._connection.ended

    async def ask(
        self,
        prefix: str,
        operation: Operation[Any, Any],
        codec: Codec,
        questions: AsyncIterator[Any],
        timeout: float | None,
    ) -> AsyncGenerator[Any, None]:
        """The answers to `questions`; leaving the iterator early cancels the operation on the other side.

        Args:
            prefix: the service's name on the wire.
            operation: which one.
            codec: turns the service's messages into bytes.
            questions: one where the operation has one.
            timeout: seconds for all of it; None for no limit.

        Raises:
            TimeoutError: `timeout` seconds are over.
            LostError: the connection ended first.
            ProtocolError: the peer sent what no peer of ours sends; the connection is dropped.
            HvsockError: what the other side refused.
        """
        path = f"/{prefix}/{operation.wire_name}"
        try:
            async with contextlib.aclosing(self._ask(path, operation, codec, questions, timeout)) as answers:
                async for answer in answers:
                    yield answer
        except GRPCError as error:
            raise _from_status(error, operation) from None
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT, f"{operation.policy_name} was not over after {timeout:g} s"
            ) from None
        except (StreamTerminatedError, ConnectionError) as error:
            raise LostError(f"the connection ended within {operation.policy_name}: {error}") from None
        except ProtocolError:
            self._connection.abort()
            raise
        except (HvsockError, OSError):
            raise
        except Exception as error:
            self._connection.abort()
            raise ProtocolError(f"the answer to {operation.policy_name} is none: {error!r}") from None

    async def _ask(
        self,
        path: str,
        operation: Operation[Any, Any],
        codec: Codec,
        questions: AsyncIterator[Any],
        timeout: float | None,
    ) -> AsyncGenerator[Any, None]:
        encoding = _Encoding(codec)
        channel = self._channels.get(codec)
        if channel is None:
            channel = self._channels[codec] = _Channel(self._connection, encoding)
        stream: client.Stream[Any, Any] = channel.request(
            path,
            _CARDINALITY[operation.many_questions, operation.many_answers],
            operation.question,
            operation.answer,
            deadline=None if timeout is None else Deadline(_timestamp=time.monotonic() + timeout),
        )
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(stream)
            if operation.many_questions:
                await stream.send_request()
                stack.push_async_callback(_end, asyncio.create_task(_send(stream, questions)))
            else:
                async for question in questions:
                    await stream.send_message(question, end=True)
            await stream.recv_initial_metadata()
            while True:
                with stream._wrapper:
                    data = await _bounded(stream._stream, operation.max_bytes, self._gathering)
                if data is None:
                    break
                yield encoding.decode(data, operation.answer)
            stream._end_done = True  # the answers may end, or fail, ahead of the questions; the rest is not sent
            await stream.recv_trailing_metadata()


async def _send(stream: client.Stream[Any, Any], questions: AsyncIterator[Any]) -> None:
    """Send all questions; what goes wrong with them ends the operation with that error."""
    try:
        async for question in questions:
            await stream.send_message(question)
        await stream.end()
    except (TimeoutError, StreamTerminatedError):
        pass  # whoever reads the answers learns of it
    except Exception as error:
        stream._wrapper.cancel(error)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _from_status(error: GRPCError, operation: Operation[Any, Any]) -> Exception:
    text = _cut("".join(c if c.isprintable() else " " for c in error.message or "no reason was given"))
    if error.status is Status.DEADLINE_EXCEEDED:
        return TimeoutError(errno.ETIMEDOUT, f"{operation.policy_name} was not over in time")
    if error.status is Status.UNIMPLEMENTED:
        return UsageError(f"the other side has no {operation.policy_name}: it is of another version")
    if error.status is Status.CANCELLED:
        return LostError(f"the other side ended {operation.policy_name}: {text}")
    return _ERRORS.get(error.status, RemoteError)(text)
