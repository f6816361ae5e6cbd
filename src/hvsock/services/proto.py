"""Schemas as text: the .proto files from which other languages make their half of a service (pure).

The files in the folder ``proto`` beside this module are what :func:`proto_text` makes of the predefined services.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

FOLDER: Final = "proto"
"""The folder of the published files, beside this module."""
_INDENT: Final = "  "
_NAMED: Final = (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)


def proto_text(file: FileDescriptorProto, title: str) -> str:
    """A schema, as :func:`.service.schema_of` makes it, as the text of a .proto file.

    Args:
        file: the schema.
        title: the first line, a comment.
    """
    parts = [f'syntax = "{file.syntax}";', f"package {file.package};"]
    parts += ["\n".join(_service(one)) for one in file.service]
    parts += ["\n".join(_message(one, file.package)) for one in file.message_type]
    parts += ["\n".join(_enum(one)) for one in file.enum_type]
    return f"// {title}\n\n" + "\n\n".join(parts) + "\n"


def _service(service: ServiceDescriptorProto) -> Iterator[str]:
    # names in full, since within a service an operation hides a message of the same name
    yield f"service {service.name} {{"
    for method in service.method:
        question = ("stream " if method.client_streaming else "") + method.input_type
        answer = ("stream " if method.server_streaming else "") + method.output_type
        yield f"{_INDENT}rpc {method.name}({question}) returns ({answer});"
    yield "}"


def _message(message: DescriptorProto, package: str) -> Iterator[str]:
    maps = {f".{package}.{message.name}.{one.name}": one for one in message.nested_type if one.options.map_entry}
    yield f"message {message.name} {{"
    for field in message.field:
        entry = maps.get(field.type_name)
        if entry is not None:
            kind = "map<" + ", ".join(_type(one, package) for one in entry.field) + ">"
        else:
            kind = _label(field) + _type(field, package)
        yield f"{_INDENT}{kind} {field.name} = {field.number};"
    yield "}"


def _enum(enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"enum {enum.name} {{"
    for value in enum.value:
        yield f"{_INDENT}{value.name} = {value.number};"
    yield "}"


def _label(field: FieldDescriptorProto) -> str:
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return "repeated "
    return "optional " if field.proto3_optional else ""


def _type(field: FieldDescriptorProto, package: str) -> str:
    if field.type in _NAMED:
        return _short(field.type_name, package)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _short(name: str, package: str) -> str:
    return name.removeprefix(f".{package}.")
