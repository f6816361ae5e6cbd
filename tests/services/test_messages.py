"""Messages: what is encoded comes back, protobuf reads the same in the bytes, and bounds hold both ways."""

from __future__ import annotations

import dataclasses
import enum
import struct
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.errors import ProtocolError, UsageError
from hvsock.services.messages import Codec, fields_of, messages_in, schema_file
from hvsock.services.types import MAX_FIELD_BYTES, MAX_ITEMS, Limit, UInt32, UInt64
from tests.support import sample

SHORT = 8
Short = Annotated[str, Limit(SHORT)]


class Colour(enum.IntEnum):
    NONE = 0
    RED = 7


@dataclass(frozen=True)
class Inner:
    text: Short = ""
    number: int = 0


@dataclass(frozen=True)
class Everything:
    """Each kind in each shape."""

    yes: bool = False
    number: int = 0
    small: UInt32 = 0
    great: UInt64 = 0
    real: float = 0.0
    text: Short = ""
    data: Annotated[bytes, Limit(SHORT)] = b""
    colour: Colour = Colour.NONE
    inner: Inner = field(default_factory=Inner)
    maybe_yes: bool | None = None
    maybe_number: int | None = None
    maybe_small: UInt32 | None = None
    maybe_great: Annotated[UInt64 | None, Limit(1)] = None
    maybe_real: float | None = None
    maybe_text: Annotated[str | None, Limit(SHORT)] = None
    maybe_data: bytes | None = None
    maybe_colour: Colour | None = None
    maybe_inner: Inner | None = None
    flags: list[bool] = field(default_factory=list)
    numbers: Annotated[list[int], Limit(3)] = field(default_factory=list)
    smalls: list[UInt32] = field(default_factory=list)
    texts: list[Short] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    inners: Annotated[list[Inner], Limit(3)] = field(default_factory=list)
    by_name: Annotated[dict[str, Inner], Limit(3)] = field(default_factory=dict)
    sizes: Annotated[dict[str, UInt64], Limit(3)] = field(default_factory=dict)
    colour_of: dict[str, Colour] = field(default_factory=dict)


@dataclass
class Tree:
    """A message within itself."""

    name: str = ""
    below: list[Tree] = field(default_factory=list)
    other: Tree | None = None


ROOTS = (Everything, Tree)
SCHEMA = schema_file("test", "test.proto", ROOTS)
CODEC = Codec(SCHEMA, ROOTS)


def reference(name: str, file: FileDescriptorProto = SCHEMA) -> Any:
    """Protobuf's own class for a message of the schema."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}"))


WIRE = reference("Everything")

bools = st.booleans()
int64s = st.integers(-(2**63), 2**63 - 1)
uint32s = st.integers(0, 2**32 - 1)
uint64s = st.integers(0, 2**64 - 1)
floats = st.floats(allow_nan=False)
shorts = st.text(st.characters(exclude_categories=["Cs"]), max_size=SHORT).filter(
    lambda one: len(one.encode()) <= SHORT
)
datas = st.binary(max_size=SHORT)
colours = st.sampled_from(Colour)
inners = st.builds(Inner, shorts, int64s)


def up_to_three(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3)


def by_key(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(shorts, values, max_size=3)


ONES = (bools, int64s, uint32s, uint64s, floats, shorts, datas, colours, inners)
MANY = (bools, int64s, uint32s, shorts, colours, inners)
everything = st.builds(
    Everything,
    *ONES,
    *(st.none() | one for one in ONES),
    *map(up_to_three, MANY),
    *map(by_key, (inners, uint64s, colours)),
)


@settings(max_examples=sample(40, 2000))
@given(everything)
def test_all_kinds_come_back(value: Everything) -> None:
    data = CODEC.encode(value)
    assert CODEC.decode(Everything, data) == value
    wire = WIRE.FromString(data)
    assert wire.SerializeToString(deterministic=True) == data
    assert wire.small == value.small
    assert wire.HasField("maybe_inner") == (value.maybe_inner is not None)
    assert [one.text for one in wire.inners] == [one.text for one in value.inners]
    assert {key: one.number for key, one in wire.by_name.items()} == {
        key: one.number for key, one in value.by_name.items()
    }
    assert dict(wire.colour_of) == value.colour_of


@settings(max_examples=sample(60, 5000))
@given(st.one_of(st.binary(max_size=60), everything.map(CODEC.encode)), st.data())
def test_what_is_no_message_is_a_protocol_error(good: bytes, data: st.DataObject) -> None:
    """Cut, with a byte changed, or anything at all: a message that keeps to its bounds, or a ProtocolError."""
    cut = good[: data.draw(st.integers(0, len(good)))]
    spoilt = bytearray(good)
    if spoilt:
        spoilt[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    for one in (cut, bytes(spoilt)):
        try:
            found = CODEC.decode(Everything, one)
        except ProtocolError:
            continue
        assert CODEC.decode(Everything, CODEC.encode(found)) == found or found.real != found.real


def test_absent_is_the_default_of_protobuf() -> None:
    assert CODEC.encode(Everything()) == CODEC.encode(CODEC.decode(Everything, b""))
    assert CODEC.decode(Everything, b"") == Everything()
    present = Everything(maybe_number=0, maybe_text="", maybe_inner=Inner(), maybe_colour=Colour.NONE)
    assert CODEC.decode(Everything, CODEC.encode(present)) == present


# -- bounds

BEYOND: list[dict[str, Any]] = [
    {"text": "x" * (SHORT + 1)},
    {"text": "é" * (SHORT // 2 + 1)},
    {"data": b"x" * (SHORT + 1)},
    {"maybe_text": "x" * (SHORT + 1)},
    {"maybe_data": bytes(MAX_FIELD_BYTES + 1)},
    {"numbers": [1] * 4},
    {"inners": [Inner()] * 4},
    {"sizes": {str(one): 1 for one in range(4)}},
    {"by_name": {str(one): Inner() for one in range(4)}},
    {"flags": [True] * (MAX_ITEMS + 1)},
    {"texts": ["", "x" * (SHORT + 1)]},
    {"inner": Inner("x" * (SHORT + 1))},
    {"inners": [Inner("x" * (SHORT + 1))]},
    {"by_name": {"a": Inner("x" * (SHORT + 1))}},
    {"sizes": {"x" * (MAX_FIELD_BYTES + 1): 1}},
    {"by_name": {"x" * (MAX_FIELD_BYTES + 1): Inner()}},
]


def wire_of(fields: dict[str, Any]) -> bytes:
    """Bytes of a peer that keeps no bounds."""
    wire = WIRE()
    for name, value in fields.items():
        put(getattr(wire, name), wire, name, value)
    made: bytes = wire.SerializeToString()
    return made


def put(target: Any, wire: Any, name: str, value: Any) -> None:
    if isinstance(value, Inner):
        target.text = value.text
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, Inner):
                target.add(text=one.text)
            else:
                target.append(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if isinstance(one, Inner):
                target[key].text = one.text
            else:
                target[key] = one
    else:
        setattr(wire, name, value)


@pytest.mark.parametrize("fields", BEYOND, ids=lambda one: next(iter(one)))
def test_bounds_hold_for_who_sends_and_against_who_sent(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the most"):
        CODEC.encode(Everything(**fields))
    with pytest.raises(ProtocolError, match="the most"):
        CODEC.decode(Everything, wire_of(fields))


def test_the_bound_itself_is_allowed() -> None:
    fields: dict[str, Any] = {
        "text": "é" * (SHORT // 2),
        "numbers": [1, 2, 3],
        "maybe_data": bytes(MAX_FIELD_BYTES),
    }
    assert CODEC.decode(Everything, wire_of(fields)) == Everything(**fields)
    assert WIRE.FromString(CODEC.encode(Everything(**fields))).text == fields["text"]


@pytest.mark.parametrize(
    "fields",
    [
        {"number": 2**63},
        {"number": -(2**63) - 1},
        {"number": "1"},
        {"number": None},
        {"small": -1},
        {"small": 2**32},
        {"great": -1},
        {"great": 2**64},
        {"smalls": [2**32]},
        {"sizes": {"a": -1}},
        {"yes": "yes"},
        {"real": "1"},
        {"text": b"x"},
        {"text": 1},
        {"text": "\ud800"},
        {"data": "x"},
        {"data": None},
        {"colour": 3},
        {"colours": [1]},
        {"inner": None},
        {"inner": Everything()},
        {"inners": [None]},
        {"by_name": {"a": "b"}},
        {"maybe_inner": 1},
        {"maybe_colour": 99},
    ],
    ids=repr,
)
def test_values_that_a_field_cannot_have_are_their_authors_doing(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        CODEC.encode(Everything(**fields))


# -- bytes by hand


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def piece(name: str, wire_type: int, body: bytes) -> bytes:
    """One field as it goes over the wire."""
    number = next(one.number for one in fields_of(Everything) if one.name == name)
    return varint(number << 3 | wire_type) + body


def lengthy(name: str, body: bytes) -> bytes:
    return piece(name, 2, varint(len(body)) + body)


BROKEN = {
    "invalid UTF-8": lengthy("text", b"\xff"),
    "a surrogate in UTF-8": lengthy("text", b"\xed\xa0\x80"),
    "invalid UTF-8 in a list": lengthy("texts", b"\xc3"),
    "invalid UTF-8 in a key": lengthy("sizes", b"\x0a\x01\xff\x10\x01"),
    "invalid UTF-8 further in": lengthy("inner", b"\x0a\x01\xff"),
    "a length beyond the end": piece("data", 2, varint(5) + b"1234"),
    "a length of 2**63": piece("data", 2, varint(2**63)),
    "a varint without an end": piece("number", 0, b"\xff" * 11),
    "a varint that is cut": piece("number", 0, b"\x80"),
    "a double that is cut": piece("real", 1, b"1234567"),
    "wire type 6": piece("number", 6, b""),
    "wire type 7": piece("number", 7, b""),
    "field zero": b"\x00\x00",
    "an end without its group": piece("number", 4, b""),
    "a group without its end": piece("number", 3, b""),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_bytes(data: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"bytes that are no Everything$"):
        CODEC.decode(Everything, data)


@pytest.mark.parametrize("name", ["colour", "maybe_colour", "colours", "colour_of"])
def test_numbers_that_no_member_has(name: str) -> None:
    data = {
        "colours": lengthy(name, b"\x07\x63"),
        "colour_of": lengthy(name, b"\x0a\x01a\x10\x63"),
    }.get(name, piece(name, 0, b"\x63"))
    with pytest.raises(ProtocolError, match=rf"Everything\.{name}: 99 is not a valid Colour"):
        CODEC.decode(Everything, data)


def test_what_is_not_known_is_left_out() -> None:
    """A newer peer has more fields; a field of the wrong wire type is one that is not known, as for protobuf."""
    unknown = varint(500 << 3 | 2) + b"\x03new" + varint(501 << 3) + b"\x01" + varint(502 << 3 | 5) + b"abcd"
    wrong = piece("text", 0, b"\x05") + lengthy("real", b"12345678") + piece("inner", 5, b"abcd")
    assert CODEC.decode(Everything, unknown + wrong + piece("number", 0, b"\x07")) == Everything(number=7)


def test_of_what_comes_twice_the_last_counts_and_messages_merge() -> None:
    twice = piece("number", 0, b"\x01") + piece("number", 0, b"\x02")
    merged = lengthy("inner", b"\x0a\x01a") + lengthy("inner", b"\x10\x05")
    keys = lengthy("sizes", b"\x0a\x01a\x10\x01") + lengthy("sizes", b"\x0a\x01a\x10\x02")
    assert CODEC.decode(Everything, twice + merged + keys) == Everything(
        number=2, inner=Inner("a", 5), sizes={"a": 2}
    )


def test_texts_that_come_in_pieces_too_many_are_too_many() -> None:
    """Packed or not, in one piece or in many: what counts is how many there are."""
    with pytest.raises(ProtocolError, match="4 items; 3 is the most"):
        CODEC.decode(
            Everything, lengthy("numbers", b"\1\2") + piece("numbers", 0, b"\3") + lengthy("numbers", b"\4")
        )


def test_a_wider_integer_is_cut_as_protobuf_does() -> None:
    data = piece("small", 0, varint(2**32 + 5))
    assert CODEC.decode(Everything, data).small == WIRE.FromString(data).small == 5


def test_doubles_that_are_no_numbers() -> None:
    for bits in (struct.pack("<d", float("nan")), struct.pack("<d", float("inf"))):
        found = CODEC.decode(Everything, piece("real", 1, bits)).real
        assert struct.pack("<d", found) == bits


def nested(depth: int) -> bytes:
    """A tree so deep, by hand."""
    data = b""
    for _ in range(depth):
        data = b"\x12" + varint(len(data)) + data
    return data


def test_depth_has_an_end() -> None:
    found = CODEC.decode(Tree, nested(50))
    assert CODEC.encode(found) == nested(50)
    for depth in (200, 5000):
        with pytest.raises(ProtocolError, match="are no Tree"):
            CODEC.decode(Tree, nested(depth))


# -- what an author of messages does


@dataclass
class AnyUnion:
    wrong: int | str


@dataclass
class WideUnion:
    wrong: int | str | None


@dataclass
class KeysOfInt:
    wrong: dict[int, str]


@dataclass
class Complex:
    wrong: complex


@dataclass
class ListOfLists:
    wrong: list[list[int]]


@pytest.mark.parametrize("wrong", [AnyUnion, WideUnion, KeysOfInt, Complex, ListOfLists])
def test_types_that_no_field_can_be(wrong: type) -> None:
    with pytest.raises(UsageError, match=rf"^{wrong.__name__}\.wrong "):
        schema_file("test", "x.proto", (wrong,))


def test_what_is_no_message() -> None:
    with pytest.raises(UsageError, match="messages are dataclasses"):
        fields_of(int)


class NoZero(enum.IntEnum):
    ONE = 1


class Nothing(enum.IntEnum):
    pass


@dataclass
class Enums:
    one: NoZero


@dataclass
class Empty:
    one: Nothing


@pytest.mark.parametrize("wrong", [Enums, Empty])
def test_enumerations_have_a_zero(wrong: type) -> None:
    with pytest.raises(UsageError, match="value 0"):
        schema_file("test", "x.proto", (wrong,))


def test_names_are_those_of_one_class() -> None:
    other = dataclasses.make_dataclass("Inner", [("x", int)])
    with pytest.raises(UsageError, match="are called Inner"):
        messages_in((Everything, other))
    assert set(messages_in((Everything,))) == {"Everything", "Inner", "Colour"}
