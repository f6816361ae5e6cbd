"""Messages: dataclasses that travel as Protocol Buffers (pure).

A message is a dataclass, frozen or not. Its fields, in their order, have the numbers 1, 2, 3 and so on; so a field
may be added at the end, and none may be moved or taken out. Field types are bool, int (int64), the integers of
:mod:`.types`, float (double), str, bytes, IntEnum classes, other messages, ``list[T]``, ``dict[str, T]`` and
``T | None``. What is absent on the wire has protobuf's default: False, 0, "", an empty list, or None.

What comes from a peer is checked against the bounds of :mod:`.types` before anybody sees it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, Union, get_args, get_origin

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from hvsock.errors import ProtocolError, UsageError

from .types import INT64, MAX_FIELD_BYTES, MAX_ITEMS, Limit, Width

M = TypeVar("M")

FieldProto = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final[dict[type, int]] = {
    bool: FieldProto.TYPE_BOOL,
    float: FieldProto.TYPE_DOUBLE,
    str: FieldProto.TYPE_STRING,
    bytes: FieldProto.TYPE_BYTES,
}
_WIDTHS: Final = {
    "int64": FieldProto.TYPE_INT64,
    "uint32": FieldProto.TYPE_UINT32,
    "uint64": FieldProto.TYPE_UINT64,
}


class Kind(NamedTuple):
    """What a field's type comes to, without list, dict or None around it.

    Attributes:
        base: bool, int, float, str, bytes, an IntEnum class or a message's class.
        width: of an int.
        most: bytes of a text or of bytes.
    """

    base: type
    width: Width
    most: int


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        name: its name.
        number: its number on the wire.
        kind: its type, or that of its items or values.
        shape: "one", "optional", "list" or "map".
        items: most items of a list or map.
    """

    name: str
    number: int
    kind: Kind
    shape: str
    items: int = MAX_ITEMS


_fields: dict[type, tuple[Field, ...]] = {}


def fields_of(message: type) -> tuple[Field, ...]:
    """The fields of a message's class.

    Raises:
        UsageError: it is no dataclass, or a field has a type that messages do not have; its author's doing.
    """
    found = _fields.get(message)
    if found is not None:
        return found
    if not dataclasses.is_dataclass(message):
        raise UsageError(f"{message!r} is no message: messages are dataclasses")
    hints = typing.get_type_hints(message, include_extras=True)
    found = _fields[message] = tuple(
        _field(f"{message.__qualname__}.{one.name}", one.name, number, hints[one.name])
        for number, one in enumerate(dataclasses.fields(message), start=1)
    )
    return found


def _field(where: str, name: str, number: int, hint: Any) -> Field:
    bare, extras = _without_annotation(hint)
    limit = next((one.most for one in extras if isinstance(one, Limit)), None)
    origin, arguments = get_origin(bare), get_args(bare)
    if origin in (Union, types.UnionType):
        if len(arguments) != 2 or type(None) not in arguments:
            raise UsageError(f"{where} is a union; of those, messages have T | None alone")
        (inner,) = (one for one in arguments if one is not type(None))
        return Field(name, number, _kind(where, inner, extras), "optional")
    if origin is list:
        return Field(name, number, _kind(where, arguments[0], ()), "list", limit or MAX_ITEMS)
    if origin is dict:
        if arguments[0] is not str:
            raise UsageError(f"{where} has keys of {arguments[0]!r}; maps have keys of str")
        return Field(name, number, _kind(where, arguments[1], ()), "map", limit or MAX_ITEMS)
    return Field(name, number, _kind(where, hint, ()), "one")


def _without_annotation(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (hint.__origin__, hint.__metadata__) if get_origin(hint) is typing.Annotated else (hint, ())


def _kind(where: str, hint: Any, more: tuple[Any, ...]) -> Kind:
    bare, extras = _without_annotation(hint)
    extras = (*extras, *more)
    width = next((one for one in extras if isinstance(one, Width)), INT64)
    most = next((one.most for one in extras if isinstance(one, Limit)), MAX_FIELD_BYTES)
    known = isinstance(bare, type) and (
        bare in _SCALARS or bare is int or issubclass(bare, enum.IntEnum) or dataclasses.is_dataclass(bare)
    )
    if not known:
        raise UsageError(f"{where} is {hint!r}, which no field of a message can be")
    return Kind(bare, width, most)


def messages_in(roots: tuple[type, ...]) -> dict[str, type]:
    """The classes that go into one schema: `roots`, and the messages and enumerations that they need, by name.

    Raises:
        UsageError: two of them have the same name.
    """
    found: dict[str, type] = {}
    todo = list(reversed(roots))
    while todo:
        one = todo.pop()
        other = found.setdefault(one.__name__, one)
        if other is not one:
            raise UsageError(f"two messages of one service are called {one.__name__}")
        if dataclasses.is_dataclass(one):
            needed = [
                field.kind.base
                for field in fields_of(one)
                if field.kind.base not in _SCALARS and field.kind.base is not int
            ]
            todo += [base for base in reversed(needed) if found.get(base.__name__) is not base]
    return found


def schema_file(package: str, name: str, roots: tuple[type, ...]) -> descriptor_pb2.FileDescriptorProto:
    """The description of messages as a file of protobuf.

    Args:
        package: protobuf's package, like "hvsock.heartbeat".
        name: the file's name.
        roots: classes; those that they need come along.

    Raises:
        UsageError: a class cannot be a message.
    """
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for found in messages_in(roots).values():
        if issubclass(found, enum.IntEnum):
            _describe_enum(file, found)
        else:
            _describe_message(file, package, found)
    return file


def _describe_enum(file: descriptor_pb2.FileDescriptorProto, found: type[enum.IntEnum]) -> None:
    members = sorted(found, key=lambda one: one.value)
    if not members or members[0].value != 0:
        raise UsageError(f"{found.__name__} needs a member with the value 0, which is what absent means")
    made = file.enum_type.add(name=found.__name__)
    for one in members:
        made.value.add(name=f"{_shouted(found.__name__)}_{one.name}", number=one.value)


def _describe_message(file: descriptor_pb2.FileDescriptorProto, package: str, found: type) -> None:
    made = file.message_type.add(name=found.__name__)
    for field in fields_of(found):
        described = made.field.add(name=field.name, number=field.number)
        described.label = (
            FieldProto.LABEL_REPEATED if field.shape in ("list", "map") else FieldProto.LABEL_OPTIONAL
        )
        if field.shape == "map":
            entry = made.nested_type.add(name=f"{_camel(field.name)}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=FieldProto.TYPE_STRING, label=FieldProto.LABEL_OPTIONAL)
            value = entry.field.add(name="value", number=2, label=FieldProto.LABEL_OPTIONAL)
            _describe_type(value, package, field.kind)
            described.type = FieldProto.TYPE_MESSAGE
            described.type_name = f".{package}.{found.__name__}.{entry.name}"
            continue
        _describe_type(described, package, field.kind)
        if field.shape == "optional" and described.type != FieldProto.TYPE_MESSAGE:
            described.proto3_optional = True
            described.oneof_index = len(made.oneof_decl)
            made.oneof_decl.add(name=f"_{field.name}")


def _describe_type(described: descriptor_pb2.FieldDescriptorProto, package: str, kind: Kind) -> None:
    if kind.base in _SCALARS:
        described.type = _SCALARS[kind.base]  # type: ignore[assignment]
    elif kind.base is int:
        described.type = _WIDTHS[kind.width.name]
    else:
        is_enum = issubclass(kind.base, enum.IntEnum)
        described.type = FieldProto.TYPE_ENUM if is_enum else FieldProto.TYPE_MESSAGE
        described.type_name = f".{package}.{kind.base.__name__}"


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _shouted(name: str) -> str:
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(name)).upper()


class Codec:
    """Turns messages into bytes and back.

    Args:
        file: the schema, as :func:`schema_file` makes it.
        roots: the classes that it was made of.
    """

    def __init__(self, file: descriptor_pb2.FileDescriptorProto, roots: tuple[type, ...]) -> None:
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._classes: dict[type, Any] = {
            found: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
            for name, found in messages_in(roots).items()
            if dataclasses.is_dataclass(found)
        }

    def encode(self, value: Any) -> bytes:
        """The bytes of a message.

        Raises:
            UsageError: a field has a value that it cannot have, or goes beyond its bound; the caller's doing.
        """
        made: bytes = self._wire_of(value).SerializeToString(deterministic=True)
        return made

    def decode(self, message: type[M], data: bytes) -> M:
        """The message in `data`.

        Raises:
            ProtocolError: it is none, or a field goes beyond its bound; the sender's doing.
        """
        wire = self._classes[message]()
        try:
            wire.ParseFromString(data)
        except (DecodeError, RecursionError):
            raise ProtocolError(f"{len(data)} bytes that are no {message.__name__}") from None
        return self._value_of(message, wire)

    def _wire_of(self, value: Any) -> Any:
        message = type(value)
        wire = self._classes[message]()
        for field in fields_of(message):
            try:
                self._put(wire, field, getattr(value, field.name))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{message.__name__}.{field.name}: {error}") from None
        return wire

    def _put(self, wire: Any, field: Field, value: Any) -> None:
        check = functools.partial(_checked, field.kind)
        if field.shape == "optional" and value is None:
            return
        if field.shape in ("one", "optional"):
            if dataclasses.is_dataclass(field.kind.base):
                getattr(wire, field.name).CopyFrom(self._wire_of(_instance(field.kind.base, value)))
            else:
                setattr(wire, field.name, check(value))
            return
        if len(value) > field.items:
            raise ValueError(f"{len(value)} items; {field.items} is the most")
        target = getattr(wire, field.name)
        if dataclasses.is_dataclass(field.kind.base):
            if field.shape == "list":
                target.extend(self._wire_of(_instance(field.kind.base, one)) for one in value)
            else:
                for key, one in value.items():
                    target[_bounded_key(key)].CopyFrom(self._wire_of(_instance(field.kind.base, one)))
        elif field.shape == "list":
            target.extend(check(one) for one in value)
        else:
            for key, one in value.items():
                target[_bounded_key(key)] = check(one)

    def _value_of(self, message: type[M], wire: Any) -> M:
        return message(**{field.name: self._take(message, field, wire) for field in fields_of(message)})

    def _take(self, message: type, field: Field, wire: Any) -> Any:
        base = field.kind.base
        convert: Callable[[Any], Any] = functools.partial(_checked, field.kind)
        if dataclasses.is_dataclass(base):
            convert = functools.partial(self._value_of, base)
        found = getattr(wire, field.name)
        try:
            if field.shape == "optional":
                return convert(found) if wire.HasField(field.name) else None
            if field.shape == "one":
                return convert(found)
            if len(found) > field.items:
                raise ValueError(f"{len(found)} items; {field.items} is the most")
            if field.shape == "list":
                return [convert(one) for one in found]
            return {_bounded_key(key): convert(found[key]) for key in found}
        except ValueError as error:
            raise ProtocolError(f"{message.__name__}.{field.name}: {error}") from None


def _instance(base: type, value: Any) -> Any:
    if not isinstance(value, base):
        raise TypeError(f"a {base.__name__} is due, not {type(value).__name__}")
    return value


def _bounded_key(key: str) -> str:
    if len(key.encode()) > MAX_FIELD_BYTES:
        raise ValueError(f"a key of {len(key)} characters; {MAX_FIELD_BYTES} bytes are the most")
    return key


def _checked(kind: Kind, value: Any) -> Any:
    """`value`, if a field of that kind can have it.

    Raises:
        ValueError: it is beyond its bound.
        TypeError: it is of another type.
    """
    base = kind.base
    if base is str:
        if len(value.encode() if isinstance(value, str) else _instance(str, value)) > kind.most:
            raise ValueError(f"a text of {len(value)} characters; {kind.most} bytes are the most")
        return value
    if base is bytes:
        if len(value) > kind.most:
            raise ValueError(f"{len(value)} bytes; {kind.most} are the most")
        return bytes(value)
    if base is int:
        if not kind.width.least <= value <= kind.width.most:
            raise ValueError(f"{value} is no {kind.width.name}")
        return value
    if issubclass(base, enum.IntEnum):
        return base(value)
    return value
