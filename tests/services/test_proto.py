"""The published .proto files: those of the classes, and what protoc makes of them."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

assert sys.platform == "linux"

import hvsock.services
from hvsock.services.caller import Caller
from hvsock.services.proto import FOLDER, proto_text
from hvsock.services.publishing import MADE_BY, published, services
from hvsock.services.service import Service, call, exchange, schema_of, upload
from hvsock.services.types import UInt32, UInt64

PUBLISHED: Final = Path(hvsock.services.__file__).parent / FOLDER

SCHEMAS: Final = {schema.name: schema for schema in map(schema_of, services())}


class Colour(enum.IntEnum):
    NONE = 0
    DARK_RED = 7


@dataclass
class Inner:
    text: str


@dataclass
class Everything:
    yes: bool
    number: int
    small: UInt32
    great: UInt64
    real: float
    data: bytes
    colour: Colour
    inner: Inner
    maybe: str | None = None
    maybe_colour: Colour | None = None
    maybe_inner: Inner | None = None
    numbers: list[int] = field(default_factory=list)
    inners: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner] = field(default_factory=dict)
    colour_of_all: dict[str, Colour] = field(default_factory=dict)


class Every(Service, name="Every shape", port=5999):
    @call
    async def one(self, caller: Caller, question: Everything) -> Inner:
        return Inner("")

    @upload
    async def many_to_one(self, caller: Caller, questions: AsyncIterator[Everything]) -> Inner:
        return Inner("")

    @exchange
    async def many(self, caller: Caller, questions: AsyncIterator[Inner]) -> AsyncIterator[Everything]:
        async for _ in questions:
            raise AssertionError
        if self.NAME == "":
            yield Everything(True, 1, 1, 1, 1.0, b"", Colour.NONE, Inner(""))


def compiled(text: str, name: str, folder: Path) -> FileDescriptorProto:
    """What protoc makes of a file."""
    (folder / name).write_text(text, encoding="utf-8")
    out = folder / "out"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={out}", name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = FileDescriptorSet.FromString(out.read_bytes()).file
    return plain(found)


def plain(file: FileDescriptorProto) -> FileDescriptorProto:
    """The same without what is said or left out with the same meaning."""
    copy = FileDescriptorProto()
    copy.CopyFrom(file)
    for message in copy.message_type:
        for one in (message, *message.nested_type):
            for described in one.field:
                described.ClearField("json_name")
    for service in copy.service:
        for method in service.method:
            method.client_streaming = method.client_streaming
            method.server_streaming = method.server_streaming
    return copy


def test_the_package_has_what_its_classes_say() -> None:
    there = {path.name: path.read_text(encoding="utf-8") for path in PUBLISHED.glob("*.proto")}
    assert there == published(), f"write them anew: {MADE_BY}"
    assert {"heartbeat.proto", "timesync.proto", "negotiation.proto"} <= there.keys()


@pytest.mark.parametrize("name", sorted(published()))
def test_protoc_takes_what_is_published(name: str, tmp_path: Path) -> None:
    found = compiled(published()[name], name, tmp_path)
    assert found == plain(SCHEMAS[name])


def test_protoc_reads_the_schema_that_was_written(tmp_path: Path) -> None:
    schema = schema_of(Every)
    assert compiled(proto_text(schema, "Every shape."), schema.name, tmp_path) == plain(schema)
