"""Every example that [MS-PSRP] prints of a message or an object, read by what reads those of a real peer.

The examples are Microsoft's and not part of this project; test_specification.py has some short ones. Whoever has
the specification names by HVSOCK_PSRP_EXAMPLES a file with them, each below a line of "===", its section and its
name ("=== 2.2.2.1 SESSION_CAPABILITY"), without the indentation and the breaks of lines that the page needs. Lines
ahead of the first are a comment. Not among them is what is no message of PSRP's: the WS-MAN messages of section 3,
and the sequences of section 4.1, which print no message. In 2.2.2.31 a ">" is missing, which is to be added.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import os
import struct
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psrpcore
import psrpcore.types as ps
import pytest

from hvsock.errors import ProtocolError
from hvsock.services.powershell.fragments import Message, Reassembly
from hvsock.services.powershell.framing import POOL, Decoder, Element, Kind, Role
from hvsock.services.powershell.pipelines import record_of
from hvsock.services.powershell.pools import opened
from hvsock.services.powershell.records import (
    ErrorDetail,
    Information,
    Progress,
    Record,
    RemoteObject,
    State,
    Stream,
)
from hvsock.services.powershell.values import error_detail, to_python
from hvsock.testing.psrp_server import Server
from tests.services.powershell.psrp import PATIENCE, Streams, Typist, connected

_VARIABLE: Final = "HVSOCK_PSRP_EXAMPLES"
_FILE: Final = os.environ.get(_VARIABLE)
if _FILE is None:
    pytest.skip(f"{_VARIABLE} names no file with the examples of [MS-PSRP]", allow_module_level=True)
EXAMPLES: Final = {
    head: body.strip()
    for head, _, body in (one.partition("\n") for one in f"\n{Path(_FILE).read_text('utf-8')}".split("\n=== ")[1:])
}
"""The examples by section and name."""
RUNSPACES: Final = UUID("d034652d-126b-e340-b773-cba26459cfa8")
PIPELINE: Final = UUID("4d9dbb1a-9b2c-4f4d-8ba0-2e3d2a5d3f6e")
Types: Final = ps.PSRPMessageType


def example(section: str) -> str:
    """The example of a section, which may be given without its name."""
    (name,) = (one for one in EXAMPLES if one == section or one.startswith(f"{section} "))
    return EXAMPLES[name]


def element(kind: int, text: str, target: UUID = POOL, role: Role = Role.SERVER, object_id: int = 1) -> Element:
    """A message as it goes over a stream.

    Args:
        kind: its type.
        text: its object.
        target: the pipeline, or the pool.
        role: who sends it.
        object_id: its number.
    """
    destination = 1 if role is Role.SERVER else 2
    whole = struct.pack("<II", destination, kind) + RUNSPACES.bytes_le + target.bytes_le + text.encode()
    return Element(Kind.DATA, target, struct.pack(">QQBI", object_id, 0, 3, len(whole)) + whole)


def event_of(kind: int, text: str, role: Role = Role.SERVER, pool: Any = None, target: UUID = POOL) -> Any:
    """What psrpcore makes of a message that came over a stream, by our lines, fragments and checks.

    Args:
        kind, text, target, role: as :func:`element` has them.
        pool: whose message it is, where it has to be one that knows something already.
    """
    decoder = Decoder(role)
    decoder.receive(element(kind, text, target, role).line())
    (came,) = decoder.elements()
    (message,) = Reassembly(role).receive(came.data, came.target)
    assert (message.kind, message.pool, message.target) == (kind, RUNSPACES, target)
    if pool is None:
        pool = psrpcore.ClientRunspacePool() if role is Role.SERVER else psrpcore.ServerRunspacePool()
    if kind != Types.SessionCapability:
        pool.state = ps.RunspacePoolState.Opened
    pool.receive_data(psrpcore.PSRPPayload(message.fragment, psrpcore.StreamType.default, target))
    event = pool.next_event()
    assert event is not None
    return event


def output(section: str) -> Any:
    """An example's object, as the output of a pipeline."""
    found = record_of(event_of(Types.PipelineOutput, example(section), target=PIPELINE))
    assert found is not None
    assert found.stream is Stream.OUTPUT
    return found.value


# -- 2.2.2, the messages of a server, as a client takes them

CANNOT_OPEN: Final = ErrorDetail(
    message="Can't open file",
    category="OpenError",
    error_id="System.IO.IOException",
    exception="System.IO.IOException",
    activity="Write-Error",
)
COPYING: Final = Progress("Activity Name", "Good", 20, activity_id=4, operation="Down loading", seconds_left=30)
RECORDS: Final[dict[str, tuple[int, Record]]] = {
    "2.2.2.20": (Types.ErrorRecord, Record(Stream.ERROR, CANNOT_OPEN)),
    "2.2.2.22": (Types.DebugRecord, Record(Stream.DEBUG, "Debug message")),
    "2.2.2.23": (Types.VerboseRecord, Record(Stream.VERBOSE, "Verbose message")),
    "2.2.2.24": (Types.WarningRecord, Record(Stream.WARNING, "Warning message")),
    "2.2.2.25": (Types.ProgressRecord, Record(Stream.PROGRESS, COPYING)),
    "2.2.2.26": (
        Types.InformationRecord,
        Record(Stream.INFORMATION, Information("Information Data", "Write-Information")),
    ),
}
"""The records that a pipeline writes."""


def without_blanks(record: Record) -> Record:
    """A record whose error has no blanks around its message: there are some in the example."""
    if isinstance(record.value, ErrorDetail):
        return Record(
            record.stream, ErrorDetail(**{**_fields(record.value), "message": record.value.message.strip()})
        )
    return record


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


async def messages_of(reader: asyncio.StreamReader, role: Role, answer: Callable[[Element], None]) -> Any:
    """The messages of a peer, as they come; `answer` gets each element."""
    decoder, reassembly = Decoder(role), Reassembly(role)
    while data := await reader.read(1 << 16):
        decoder.receive(data)
        for one in decoder.elements():
            answer(one)
            if one.kind is Kind.DATA:
                for message in reassembly.receive(one.data, one.target, one.prompt_response):
                    yield message


def test_a_whole_session_of_the_specifications_server() -> None:
    """A client opens a pool, is called as a host, and runs a pipeline; all that it hears is from the examples."""
    heard: list[Message] = []
    at_opening = {
        "2.2.2.1": Types.SessionCapability,
        "2.2.2.13": Types.ApplicationPrivateData,
        "2.2.2.9": Types.RunspacePoolState,
        "2.2.2.15": Types.RunspacePoolHostCall,
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        numbers = iter(range(1, 100))

        def say(kind: int, section: str, target: UUID = POOL) -> None:
            writer.write(element(kind, example(section), target, object_id=next(numbers)).line())

        async for message in messages_of(
            reader, Role.CLIENT, lambda one: writer.write(Element(one.kind.ack, one.target).line())
        ):
            heard.append(message)
            if message.kind == Types.InitRunspacePool:
                for section, kind in at_opening.items():
                    say(kind, section)
            elif message.kind == Types.CreatePipeline:
                say(Types.UserEvent, "2.2.2.12")
                for section, (record, _) in RECORDS.items():
                    say(record, section, message.target)
                say(Types.PipelineOutput, "2.2.5.2.9", message.target)
                say(Types.PipelineState, "2.2.2.21", message.target)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            serving = asyncio.create_task(serve(*there))
            try:
                async with opened(*here, host=Typist("Line read from the host")) as pool:
                    assert pool.facts == {"BashPrivateData": {"BashVersion": "2.0"}}
                    async with pool.start("123 ") as pipeline:
                        found = [without_blanks(one) async for one in pipeline]
                    assert pipeline.state is State.STOPPED
                    assert found[:-1] == [one for _, one in RECORDS.values()]
                    assert found[-1].value["PropertySet1"]["Property4"] == "This is a forth extended property"
                    while not any(one.kind == Types.RunspacePoolHostResponse for one in heard):
                        await asyncio.sleep(0.001)
            finally:
                serving.cancel()
                await asyncio.wait({serving})

    asyncio.run(main())
    (said,) = (one.payload.decode() for one in heard if one.kind == Types.RunspacePoolHostResponse)
    printed = example("2.2.2.16")
    answers = [event_of(Types.RunspacePoolHostResponse, one, Role.CLIENT) for one in (said, printed)]
    assert [(one.ci, one.method_identifier, one.result, one.error) for one in answers] == [
        (1, ps.HostMethodIdentifier.ReadLine, "Line read from the host", None)
    ] * 2


def test_the_state_of_a_pipeline() -> None:
    pool = psrpcore.ClientRunspacePool()
    pipeline = psrpcore.ClientPowerShell(pool)
    event = event_of(Types.PipelineState, example("2.2.2.21"), pool=pool, target=pipeline.pipeline_id)
    assert event.state is ps.PSInvocationState.Stopped
    assert error_detail(event.reason) == ErrorDetail(
        message="The pipeline has been stopped.",
        category="OperationStopped",
        error_id="PipelineStopped",
        exception="System.Management.Automation.PipelineStoppedException",
    )


def test_session_capability() -> None:
    """As in 2.2.2.1, with a time zone, and as in the answer to a connect of 3.1.5.3.15, without one."""
    printed = example("2.2.2.1")
    shorter = "\n".join(line for line in printed.splitlines() if not line.startswith("<BA"))
    assert shorter != printed
    for role in Role:
        for text in (printed, shorter):
            event = event_of(Types.SessionCapability, text, role)
            versions = event.protocol_version, event.ps_version, event.serialization_version
            assert list(map(str, versions)) == ["2.2", "2.0", "1.1.0.1"]


def test_the_rest_of_a_servers_messages() -> None:
    assert event_of(Types.RunspacePoolState, example("2.2.2.9")).state is ps.RunspacePoolState.Opened
    data = event_of(Types.ApplicationPrivateData, example("2.2.2.13")).data
    assert to_python(data) == {"BashPrivateData": {"BashVersion": "2.0"}}
    call = event_of(Types.RunspacePoolHostCall, example("2.2.2.15"))
    assert (call.ci, call.method_identifier) == (1, ps.HostMethodIdentifier.ReadLine)
    assert call.method_parameters == []
    numbers = event_of(Types.RunspacePoolInitData, example("2.2.2.30"))
    assert (numbers.min_runspaces, numbers.max_runspaces) == (1, 1)
    assert isinstance(event_of(Types.PublicKeyRequest, example("2.2.2.5")), psrpcore.PublicKeyRequestEvent)


def test_a_user_event() -> None:
    event = event_of(Types.UserEvent, example("2.2.2.12")).event
    assert (event.EventIdentifier, event.ComputerName, event.MessageData) == (1, None, None)
    assert event.SourceIdentifier == "ae6245f2-c179-4a9a-a039-47b60fc44500"
    assert to_python(event.TimeGenerated).isoformat() == "2009-06-17T10:57:23.157827-07:00"
    sender, first = to_python(event.Sender), to_python(event.SourceArgs)[0]
    assert dict(sender)["Interval"] == 5000
    assert first.types[0] == sender.types[0] == "System.Timers.Timer"


def test_the_answer_to_other_numbers_of_runspaces() -> None:
    pool = psrpcore.ClientRunspacePool()
    pool.state = ps.RunspacePoolState.Opened
    assert pool.set_max_runspaces(3) == 1
    event = event_of(Types.RunspaceAvailability, example("2.2.2.8"), pool=pool)
    assert isinstance(event, psrpcore.SetRunspaceAvailabilityEvent)
    assert (event.ci, event.success, pool.max_runspaces) == (1, True, 3)


# -- 2.2.2, the messages of a client, as a server takes them

COMPLETED: Final = b'<I32 N="PipelineState">4</I32>'


def test_a_whole_session_of_the_specifications_client() -> None:
    """The pool is opened, `123 ` is run, and everything else that is asked is answered."""
    of_pool = {
        "2.2.2.1": Types.SessionCapability,
        "2.2.2.2": Types.InitRunspacePool,
        "2.2.2.6": Types.SetMaxRunspaces,
        "2.2.2.7": Types.SetMinRunspaces,
        "2.2.2.11": Types.GetAvailableRunspaces,
        "2.2.2.31": Types.ResetRunspaceState,
        "2.2.2.3": Types.PublicKey,
    }
    heard: dict[int, list[str]] = {}

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, (section, kind) in enumerate(of_pool.items(), 1):
            writer.write(element(kind, example(section), POOL, Role.CLIENT, number).line())
        writer.write(Element(Kind.COMMAND, PIPELINE).line())
        writer.write(element(Types.CreatePipeline, pipeline_to_create(), PIPELINE, Role.CLIENT, 20).line())
        async for message in messages_of(reader, Role.SERVER, lambda _: None):
            heard.setdefault(message.kind, []).append(message.payload.decode())
            if COMPLETED in message.payload:
                writer.write(Element(Kind.END).line())

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            asking = asyncio.create_task(ask(*here))
            server = Server(*there)
            try:
                await server.serve()
                assert (server.pool.min_runspaces, server.pool.max_runspaces) == (1, 1)  # as it was opened
                check_host(server.pool.host)
            finally:
                there[1].close()
                await asking
                here[1].close()

    asyncio.run(main())
    assert (
        event_of(Types.RunspacePoolState, heard[Types.RunspacePoolState][0]).state is ps.RunspacePoolState.Opened
    )
    (written,) = (
        record_of(event_of(Types.PipelineOutput, one, target=PIPELINE)) for one in heard[Types.PipelineOutput]
    )
    assert written == Record(Stream.OUTPUT, 123)
    availabilities = heard[Types.RunspaceAvailability]
    assert ['N="ci">1<' in one for one in availabilities] == [True, False, False, True]
    # the server's answer to the key of the specification has the form of the one that is printed
    (answer,) = heard[Types.EncryptedSessionKey]
    key, printed = (
        base64.b64decode(one.partition('Key">')[2].partition("<")[0]) for one in (answer, example("2.2.2.4"))
    )
    assert len(key) == len(printed) == 12 + 256
    assert key[:12] == printed[:12] == bytes.fromhex("0102000010660000 00a40000")


def pipeline_to_create() -> str:
    """2.2.2.10, with two properties that are missing there, 2.2.3.11 asks for, and psrpcore needs."""
    nested = '<B N="IsNested">false</B>\n'
    missing = '<Nil N="History" />\n<B N="RedirectShellErrorOutputPipe">false</B>\n'
    return example("2.2.2.10").replace(nested, nested + missing, 1)


def check_host(host: ps.HostInfo | None) -> None:
    """What 2.2.2.2 says of the host."""
    assert host is not None
    assert not any((host.IsHostNull, host.IsHostUINull, host.IsHostRawUINull, host.UseRunspaceHost))
    data = host.HostDefaultData
    assert data is not None
    assert data.WindowTitle == "Windows PowerShell V2 (MS Internal Only)"
    sizes = data.MaxPhysicalWindowSize, data.MaxWindowSize, data.WindowSize, data.BufferSize
    assert [(one.Width, one.Height) for one in sizes] == [(181, 98), (120, 98), (120, 79), (120, 3000)]
    assert (data.CursorSize, data.ForegroundColor, data.BackgroundColor) == (
        *(25, ps.ConsoleColor.DarkYellow),
        ps.ConsoleColor.DarkMagenta,
    )
    places = data.WindowPosition, data.CursorPosition
    assert [(one.X, one.Y) for one in places] == [(0, 0), (0, 4)]


def test_a_pipeline_to_create() -> None:
    pool = psrpcore.ServerRunspacePool()
    server = psrpcore.ServerPipeline(pool, PIPELINE)
    event = event_of(Types.CreatePipeline, pipeline_to_create(), Role.CLIENT, pool, PIPELINE)
    assert isinstance(event, psrpcore.CreatePipelineEvent)
    found = server.metadata
    assert isinstance(found, psrpcore.PowerShell)
    (command,) = found.commands
    assert (command.command_text, command.is_script, command.parameters) == (
        "123 ",
        True,
        [(None, "powershell.exe")],
    )
    assert (found.no_input, found.add_to_history, found.is_nested) == (True, False, False)
    assert found.apartment_state is ps.ApartmentState.MTA
    assert found.remote_stream_options == 15


def test_metadata_to_get() -> None:
    pool = psrpcore.ServerRunspacePool()
    server = psrpcore.ServerPipeline(pool, PIPELINE)
    event_of(Types.GetCommandMetadata, example("2.2.2.14"), Role.CLIENT, pool, PIPELINE)
    found = server.metadata
    assert isinstance(found, psrpcore.GetMetadata)
    assert (list(found.name or ()), found.command_type, list(found.namespace or ())) == (
        ["Get-*"],
        ps.CommandTypes(15),
        [],
    )


def test_the_key_of_a_client() -> None:
    """An RSA key of 2,048 bits. The private one is not printed, so what 2.2.2.4 encrypts with it stays there."""
    key = event_of(Types.PublicKey, example("2.2.2.3"), Role.CLIENT).key
    assert struct.unpack("<I", key[16:20]) == (65537,)
    assert len(key) == 20 + 256


def test_a_key_that_was_not_asked_for_ends_a_session() -> None:
    async def lie(streams: Streams) -> None:
        reader, writer = streams
        await reader.read(1)
        writer.write(element(Types.EncryptedSessionKey, example("2.2.2.4")).line())

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            lying = asyncio.create_task(lie(there))
            with pytest.raises(ProtocolError, match="not as it should be"):
                async with opened(*here):
                    pass
            await lying

    asyncio.run(main())


def test_pools_to_connect_to() -> None:
    """Nobody does over streams: sessions end with their connections. psrpcore cannot read the second example."""
    numbers = event_of(Types.ConnectRunspacePool, example("2.2.2.29 CONNECT_RUNSPACEPOOL"), Role.CLIENT)
    assert (numbers.min_runspaces, numbers.max_runspaces) == (1, 5)
    with pytest.raises(KeyError):
        event_of(Types.ConnectRunspacePool, example("2.2.2.29 CONNECT_RUNSPACEPOOL, second"), Role.CLIENT)


# -- 2.2.3, other types of objects


def test_properties_of_a_host() -> None:
    found = {section: output(section) for section in ("2.2.3.1", "2.2.3.2", "2.2.3.3")}
    place, size, color = found.values()
    assert [one["T"] for one in found.values()] == [
        "System.Management.Automation.Host.Coordinates",
        "System.Management.Automation.Host.Size",
        "System.ConsoleColor",
    ]
    assert (dict(place["V"]), dict(size["V"]), color["V"]) == ({"x": 0, "y": 0}, {"width": 181, "height": 98}, 5)


def test_metadata_of_commands() -> None:
    count, command = output("2.2.3.21"), output("2.2.3.22")
    assert dict(count) == {"Count": 1}
    assert count.types[0] == "Selected.Microsoft.PowerShell.Commands.GenericMeasureInfo"
    assert {name: command[name] for name in ("Name", "CommandType", "ResolvedCommandName", "OutputType")} == {
        "Name": "Get-Variable",
        "CommandType": "Cmdlet",
        "ResolvedCommandName": None,
        "OutputType": ["System.Management.Automation.PSVariable"],
    }
    assert dict(command["Parameters"]["Name"]) == {
        "Name": "Name",
        "ParameterType": "System.String[]",
        "Aliases": [],
        "IsDynamic": False,
        "SwitchParameter": False,
    }


def answer_of(section: str) -> Any:
    """The answer of a client's host to a pipeline."""
    pool: Any = psrpcore.ServerRunspacePool()
    event_of(Types.PublicKey, example("2.2.2.3"), Role.CLIENT, pool)
    psrpcore.ServerPipeline(pool, PIPELINE)
    return event_of(Types.PipelineHostResponse, example(section), Role.CLIENT, pool, PIPELINE)


def test_a_key_of_a_keyboard() -> None:
    event = answer_of("2.2.3.26")
    assert (event.ci, event.method_identifier) == (1, ps.HostMethodIdentifier.ReadKey)
    pressed = event.result
    assert (pressed.VirtualKeyCode, str(pressed.Character), int(pressed.ControlKeyState)) == (65, "a", 0)
    assert pressed.KeyDown is True


def test_a_credential() -> None:
    """Its password is encrypted by a key that is not printed."""
    event = answer_of("2.2.3.25")
    assert (event.ci, event.method_identifier) == (1, ps.HostMethodIdentifier.Prompt)
    found = event.result["Credential"]
    assert (found.UserName, type(found.Password)) == ("\\username", ps.PSSecureString)


# -- 2.2.5, serialization

PACIFIC: Final = dt.timezone(dt.timedelta(hours=-7))

VALUES: Final[dict[str, Any]] = {
    "2.2.5.1.1": "This is a string",
    "2.2.5.1.2": "a",
    "2.2.5.1.3": True,
    "2.2.5.1.4": dt.datetime(2008, 4, 11, 10, 42, 32, 273199, PACIFIC),
    "2.2.5.1.5": dt.timedelta(seconds=9, microseconds=26902),
    "2.2.5.1.6": 254,
    "2.2.5.1.7": -127,
    "2.2.5.1.8": 65535,
    "2.2.5.1.9": -32767,
    "2.2.5.1.10": 2**32 - 1,
    "2.2.5.1.11": -(2**31),
    "2.2.5.1.12": 2**64 - 1,
    "2.2.5.1.13": -(2**63),
    "2.2.5.1.14": 12.34,
    "2.2.5.1.15": 12.34,
    "2.2.5.1.16": Decimal("12.34"),
    "2.2.5.1.17": b"\x01\x02\x03\x04",
    "2.2.5.1.18": UUID("792e5b37-4505-47ef-b7d2-8711bb7affa8"),
    "2.2.5.1.19": "http://www.microsoft.com/",
    "2.2.5.1.20": None,
    "2.2.5.1.21": "6.2.1.3",
    "2.2.5.1.23": "get-command -type cmdlet",
    "2.2.5.2.5": "This is a string",
    "2.2.5.2.6.1": [3, 2, 1],
    "2.2.5.2.6.2": [1, 2, 3],
    "2.2.5.2.6.3": [1, 2, 3],
    "2.2.5.2.6.4": {"key2": 2, "key1": 1},
    "2.2.5.2.7": "Blue",
}


def test_values() -> None:
    found = {section: output(section) for section in VALUES}
    assert found == VALUES
    assert [type(one) for one in found.values()] == [type(one) for one in VALUES.values()]


def test_an_xml_document() -> None:
    """Its text is a string by 2.2.5.1.22 and by the schema, so it has to be escaped; in the example it is not."""
    printed = example("2.2.5.1.22")
    document = printed.removeprefix("<XD>").removesuffix("</XD>")
    escaped = document.replace("<", "&lt;").replace(">", "&gt;")
    found = record_of(event_of(Types.PipelineOutput, f"<XD>{escaped}</XD>", target=PIPELINE))
    assert found == Record(Stream.OUTPUT, document)


def test_a_secret() -> None:
    """It is encrypted by a key that is not printed, so its text stays unknown."""
    pool: Any = psrpcore.ServerRunspacePool()
    event_of(Types.PublicKey, example("2.2.2.3"), Role.CLIENT, pool)
    psrpcore.ServerPipeline(pool, PIPELINE)
    found = event_of(Types.PipelineInput, example("2.2.5.1.24"), Role.CLIENT, pool, PIPELINE).data
    assert isinstance(found, ps.PSSecureString)


POINTS: Final = {
    "2.2.5.2.1.2": [(12, 34), (12, 34)],
    "2.2.5.2.3": [(12, 34), (56, 78)],
    "2.2.5.2.4": [(12, 34)],
    "2.2.5.2.8": [(10, 20)],
    "2.2.5.2.9": [(10, 20)],
    "2.2.5.3.1": [(10, 20)],
}


def test_points() -> None:
    for section, places in POINTS.items():
        found = output(section)
        for one, (x, y) in zip(found if isinstance(found, list) else [found], places, strict=True):
            assert isinstance(one, RemoteObject)
            assert (one["x"], one["Y"], one["isempty"], one.text) == (x, y, False, f"{{X={x},Y={y}}}")
            assert one.types == ("System.Drawing.Point", "System.ValueType", "System.Object")


def test_a_point_with_more_properties() -> None:
    found = output("2.2.5.2.9")
    assert [found[f"Property{number}"] for number in (1, 2)] == [
        "This is an extended property",
        "This is a second extended property",
    ]
    assert dict(found["PropertySet1"]) == {
        "Property3": "This is a third extended property",
        "Property4": "This is a forth extended property",
    }


def test_records_as_output() -> None:
    progress, information = output("2.2.5.1.25"), output("2.2.5.1.26")
    assert (progress["Activity"], progress["Type"], progress["PercentComplete"]) == (
        "Activity Name",
        "Processing",
        20,
    )
    assert (information["MessageData"], information["ProcessId"], information["Tags"]) == (
        *("Information Data", 64332),
        [],
    )


def test_encoded_strings() -> None:
    """2.2.5.3.2; _x20_ and __ are no short forms, by section 6."""
    for encoded, text in (
        ("Order_x000A_Details", "Order\nDetails"),
        ("Order_Details_x20___", "Order_Details_x20___"),
        ("Order_x005f_x0020_", "Order_x0020_"),
    ):
        found = record_of(event_of(Types.PipelineOutput, f"<S>{encoded}</S>", target=PIPELINE))
        assert found == Record(Stream.OUTPUT, text)


def test_the_numbers_of_a_fragment() -> None:
    """4.2: a 1 is seven zeros and a 1."""
    one = bytes((0, 0, 0, 0, 0, 0, 0, 1))
    message = element(Types.PublicKeyRequest, example("2.2.2.5")).data[21:]
    first = one + bytes(8) + b"\x01" + struct.pack(">I", 10) + message[:10]
    second = one + one + b"\x02" + struct.pack(">I", len(message) - 10) + message[10:]
    reassembly = Reassembly(Role.SERVER)
    assert list(reassembly.receive(first)) == []
    (found,) = reassembly.receive(second)
    assert (found.object_id, found.kind, found.payload) == (1, Types.PublicKeyRequest, b"<S></S>")


def test_no_example_is_left_out() -> None:
    """Each is named by a test."""
    source = Path(__file__).read_text("utf-8")
    assert len(EXAMPLES) == 72
    assert [
        name for name in EXAMPLES if f'"{name.partition(" ")[0]}"' not in source and f'"{name}"' not in source
    ] == []
