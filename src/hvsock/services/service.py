"""What a service is: a class with a name, a ServiceId and typed operations.

::

    @dataclass
    class Query:
        pattern: str

    @dataclass
    class Item:
        name: str
        version: str

    class Inventory(Service, name="Inventory", port=5300):
        @download
        async def find(self, caller: Caller, query: Query) -> AsyncIterator[Item]:
            for item in installed(query.pattern):
                yield item

An instance serves (:func:`.serving.serve`), or stands for one that is served elsewhere
(:func:`.connecting.connect`). Its operations are called in the same way, ``inventory.find(Query("ssl"))``; of an
instance in the own process, that runs the handler.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, get_args, get_origin, overload

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from hvsock.addresses import ServiceId
from hvsock.errors import UsageError

from .caller import FIRST_VERSION, MYSELF, Caller
from .messages import Codec, fields_of, schema_file

Q = TypeVar("Q")
A = TypeVar("A")
S = TypeVar("S")
Q_contra = TypeVar("Q_contra", contravariant=True)
A_co = TypeVar("A_co", covariant=True)

MAX_MESSAGE_BYTES: Final = 1 << 20
"""Most bytes of one message, where an operation states no other bound."""
CALL_SECONDS: Final = 10.0
"""Deadline of a call, where neither the operation nor the caller states another; answers take milliseconds."""

_WORD = re.compile(r"[a-z][a-z0-9_]*")


class Shape(StrEnum):
    """How many messages go each way."""

    CALL = "call"
    """One question, one answer."""
    DOWNLOAD = "download"
    """One question, many answers."""
    UPLOAD = "upload"
    """Many questions, one answer."""
    EXCHANGE = "exchange"
    """Many each way."""


class Link(Protocol):
    """How an operation gets to a service that is served elsewhere."""

    def call(self, operation: Operation[Any, Any], question: Any, timeout: float | None) -> Awaitable[Any]:
        """One answer to one question, or to an iterator of them."""

    def stream(self, operation: Operation[Any, Any], question: Any, timeout: float | None) -> AsyncIterator[Any]:
        """Many answers."""


class Operation(Generic[Q, A]):
    """One operation of a service.

    Args:
        handler: the function in the class.
        shape: how many messages go each way.
        idempotent: whether doing it twice is as good as doing it once; only such a call is tried again by
            itself after its connection was lost.
        timeout: seconds until a call is over; None for an operation that goes on for as long as somebody listens.
        max_bytes: most bytes of one of its messages.

    Attributes:
        name: its name in the class, which is its name in policies and, in CamelCase, on the wire.
        service: the short name of the class.
        question: the class of what goes to the service.
        answer: the class of what comes from it.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        shape: Shape,
        *,
        idempotent: bool = False,
        timeout: float | None = CALL_SECONDS,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.handler = handler
        self.shape = shape
        self.idempotent = idempotent
        self.timeout = timeout
        self.max_bytes = max_bytes
        self.name = self.service = ""
        self.question: type = object
        self.answer: type = object

    @property
    def wire_name(self) -> str:
        """Its name on the wire."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def policy_name(self) -> str:
        """Its name in policies and logs."""
        return f"{self.service}.{self.name}"

    @property
    def many_questions(self) -> bool:
        """Whether many messages go to the service."""
        return self.shape in (Shape.UPLOAD, Shape.EXCHANGE)

    @property
    def many_answers(self) -> bool:
        """Whether many messages come from it."""
        return self.shape in (Shape.DOWNLOAD, Shape.EXCHANGE)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.question, self.answer = _messages_of(f"{owner.__qualname__}.{name}", self.handler, self.shape)

    def of(self, instance: Service) -> Any:
        """The operation of one instance: a function of the question, and of the deadline in seconds."""
        link = instance.__dict__.get("_link")
        if link is None:
            return lambda question, *, timeout=None: self.handler(instance, MYSELF, question)
        ask = link.stream if self.many_answers else link.call
        return lambda question, *, timeout=self.timeout: ask(self, question, timeout)


class BoundCall(Protocol[Q_contra, A_co]):
    """A call or an upload of one instance."""

    def __call__(self, question: Q_contra, *, timeout: float | None = ...) -> Awaitable[A_co]:
        """Ask; `timeout` is in seconds."""


class BoundStream(Protocol[Q_contra, A_co]):
    """A download or an exchange of one instance."""

    def __call__(self, question: Q_contra, *, timeout: float | None = ...) -> AsyncGenerator[A_co, None]:
        """Ask; `timeout` is in seconds, for all of it."""


class CallOperation(Operation[Q, A]):
    """See :data:`Shape.CALL` and :data:`Shape.UPLOAD`, whose question is an iterator."""

    @overload
    def __get__(self, instance: None, owner: type) -> CallOperation[Q, A]: ...

    @overload
    def __get__(self, instance: Service, owner: type) -> BoundCall[Q, A]: ...

    def __get__(self, instance: Service | None, owner: type) -> Any:
        return self if instance is None else self.of(instance)


class StreamOperation(Operation[Q, A]):
    """See :data:`Shape.DOWNLOAD` and :data:`Shape.EXCHANGE`, whose question is an iterator."""

    @overload
    def __get__(self, instance: None, owner: type) -> StreamOperation[Q, A]: ...

    @overload
    def __get__(self, instance: Service, owner: type) -> BoundStream[Q, A]: ...

    def __get__(self, instance: Service | None, owner: type) -> Any:
        return self if instance is None else self.of(instance)


class _Decorator:
    """Makes operations of one shape out of handlers; with settings, or bare."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def _made(self, kind: Any, handler: Any, settings: dict[str, Any]) -> Any:
        if handler is not None:
            return kind(handler, self._shape)
        return lambda function: kind(function, self._shape, **settings)


class _CallDecorator(_Decorator):
    @overload
    def __call__(self, handler: Callable[[S, Caller, Q], Awaitable[A]], /) -> CallOperation[Q, A]: ...

    @overload
    def __call__(
        self, /, *, idempotent: bool = ..., timeout: float | None = ..., max_bytes: int = ...
    ) -> Callable[[Callable[[S, Caller, Q], Awaitable[A]]], CallOperation[Q, A]]: ...

    def __call__(self, handler: Any = None, /, **settings: Any) -> Any:
        """Make an operation of a handler."""
        return self._made(CallOperation, handler, settings)


class _StreamDecorator(_Decorator):
    @overload
    def __call__(self, handler: Callable[[S, Caller, Q], AsyncIterator[A]], /) -> StreamOperation[Q, A]: ...

    @overload
    def __call__(
        self, /, *, idempotent: bool = ..., timeout: float | None = ..., max_bytes: int = ...
    ) -> Callable[[Callable[[S, Caller, Q], AsyncIterator[A]]], StreamOperation[Q, A]]: ...

    def __call__(self, handler: Any = None, /, **settings: Any) -> Any:
        """Make an operation of a handler."""
        settings.setdefault("timeout", None)
        if handler is not None:
            return StreamOperation(handler, self._shape, timeout=None)
        return self._made(StreamOperation, None, settings)


call = _CallDecorator(Shape.CALL)
"""``async def name(self, caller: Caller, question: Q) -> A``."""
upload = _CallDecorator(Shape.UPLOAD)
"""``async def name(self, caller: Caller, questions: AsyncIterator[Q]) -> A``."""
download = _StreamDecorator(Shape.DOWNLOAD)
"""``async def name(self, caller: Caller, question: Q) -> AsyncIterator[A]``, a generator."""
exchange = _StreamDecorator(Shape.EXCHANGE)
"""``async def name(self, caller: Caller, questions: AsyncIterator[Q]) -> AsyncIterator[A]``, a generator."""


class Service:
    """The base of services; see the module.

    A subclass states, as keywords of the class:

    Args:
        name: its friendly name, by which it is registered.
        id: its ServiceId; or
        port: the AF_VSOCK port whose ServiceId it has, by which Linux guests reach it without an alias.
        short: its name in policies and on the wire; by default the class's name in lower case.
        versions: those that it speaks.
        features: what it knows beyond a version's minimum.

    A class that states nothing inherits all of it, for an implementation apart from the interface.
    """

    NAME: ClassVar[str] = ""
    ID: ClassVar[ServiceId]
    SHORT: ClassVar[str]
    WIRE: ClassVar[str]
    VERSIONS: ClassVar[tuple[int, ...]]
    FEATURES: ClassVar[frozenset[str]]
    OPERATIONS: ClassVar[dict[str, Operation[Any, Any]]]

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        id: str | None = None,
        port: int | None = None,
        short: str | None = None,
        versions: tuple[int, ...] = (FIRST_VERSION,),
        features: frozenset[str] = frozenset(),
    ) -> None:
        super().__init_subclass__()
        if name is not None:
            cls._describe(name, id, port, short, versions, features)
        elif not cls.NAME:
            raise UsageError(f"{cls.__qualname__} states no name: class {cls.__name__}(Service, name=..., id=...)")
        cls.OPERATIONS = {
            key: value
            for one in reversed(cls.__mro__)
            for key, value in vars(one).items()
            if isinstance(value, Operation)
        }
        for operation in cls.OPERATIONS.values():
            operation.service = cls.SHORT

    @classmethod
    def _describe(
        cls,
        name: str,
        id: str | None,
        port: int | None,
        short: str | None,
        versions: tuple[int, ...],
        features: frozenset[str],
    ) -> None:
        cls.ID = id_of(cls, id, port)
        short = cls.__name__.lower() if short is None else short
        if not _WORD.fullmatch(short):
            raise UsageError(f"{short!r} is no short name: lower-case letters, digits and underscores")
        if not versions or min(versions) < 1:
            raise UsageError(f"{cls.__qualname__} speaks no version; they count from 1")
        cls.NAME, cls.SHORT = name, short
        cls.VERSIONS, cls.FEATURES = tuple(sorted(versions)), features
        cls.WIRE = f"hvsock.{short}.{cls.__name__}"

    async def ready(self) -> None:
        """Wait until this instance can serve; peers that negotiate are told then. By default, that is at once."""


def id_of(cls: type, id: str | None, port: int | None) -> ServiceId:
    """The ServiceId that the class of a service states.

    Raises:
        UsageError: it states none, or twice.
        ValueError: `id` is no GUID.
    """
    if (id is None) == (port is None):
        raise UsageError(f"{cls.__qualname__} has either an id or a port, which say the same")
    return ServiceId.from_port(port) if port is not None else ServiceId(id or "")


def roots_of(service: type[Service]) -> tuple[type, ...]:
    """The messages that a service's operations take and give, each once."""
    found = [one for operation in service.OPERATIONS.values() for one in (operation.question, operation.answer)]
    return tuple(dict.fromkeys(found))


def schema_of(service: type[Service]) -> FileDescriptorProto:
    """The description of a service's messages and operations, for protobuf and gRPC."""
    package, _, name = service.WIRE.rpartition(".")
    file = schema_file(package, f"{service.SHORT}.proto", roots_of(service))
    described = file.service.add(name=name)
    for operation in service.OPERATIONS.values():
        described.method.add(
            name=operation.wire_name,
            input_type=f".{package}.{operation.question.__name__}",
            output_type=f".{package}.{operation.answer.__name__}",
            client_streaming=operation.many_questions,
            server_streaming=operation.many_answers,
        )
    return file


_codecs: dict[type, Codec] = {}


def codec_of(service: type[Service]) -> Codec:
    """What turns the messages of a service into bytes."""
    found = _codecs.get(service)
    if found is None:
        found = _codecs[service] = Codec(schema_of(service), roots_of(service))
    return found


def _messages_of(where: str, handler: Callable[..., Any], shape: Shape) -> tuple[type, type]:
    """The classes of a handler's question and answer."""
    try:
        hints = typing.get_type_hints(handler)
    except NameError as error:
        raise UsageError(f"{where}: {error}; messages stand in a module, before their service") from None
    names = list(inspect.signature(handler).parameters)
    if len(names) != 3 or not {names[2], "return"} <= hints.keys():
        raise UsageError(f"{where} needs the form (self, caller: Caller, question: Q) -> A, with types")
    question, answer = hints[names[2]], hints["return"]
    if shape in (Shape.UPLOAD, Shape.EXCHANGE):
        question = _item(where, question)
    if shape in (Shape.DOWNLOAD, Shape.EXCHANGE):
        answer = _item(where, answer)
    for one in (question, answer):
        fields_of(one)
    return question, answer


def _item(where: str, hint: Any) -> type:
    if get_origin(hint) is not AsyncIterator:
        raise UsageError(f"{where} has many messages one way, which are an AsyncIterator, not {hint!r}")
    found: type = get_args(hint)[0]
    return found
