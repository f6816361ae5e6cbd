"""The example messages that [MS-PSRP] prints, read as a client reads them.

The examples are those of the sections named beside them, of the Open Specification of the PowerShell Remoting
Protocol by Microsoft, whose notice lets implementers distribute them.
"""

from __future__ import annotations

import struct
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psrpcore
import psrpcore.types as ps
import pytest

from hvsock.services.powershell import hostcalls
from hvsock.services.powershell.fragments import Reassembly
from hvsock.services.powershell.framing import POOL, Decoder, Element, Kind, Role
from hvsock.services.powershell.pipelines import record_of
from hvsock.services.powershell.records import Information, Record, RemoteObject, Stream
from hvsock.services.powershell.values import to_python

RUNSPACES = UUID("d034652d-126b-e340-b773-cba26459cfa8")
PIPELINE = UUID("4d9dbb1a-9b2c-4f4d-8ba0-2e3d2a5d3f6e")


def event_of(kind: int, text: str, role: Role = Role.SERVER) -> psrpcore.PSRPEvent[Any, Any]:
    """What psrpcore makes of a message that came over a stream, by our lines, fragments and checks."""
    pipeline_kinds = 0x00041000 <= kind < 0x00042000
    target = PIPELINE if pipeline_kinds else POOL
    payload = "\n".join(line.strip() for line in text.strip().splitlines()).encode()
    destination = 1 if role is Role.SERVER else 2
    whole = struct.pack("<II", destination, kind) + RUNSPACES.bytes_le + target.bytes_le + payload
    fragment = struct.pack(">QQBI", 1, 0, 3, len(whole)) + whole
    decoder = Decoder(role)
    decoder.receive(Element(Kind.DATA, target, fragment).line())
    (element,) = decoder.elements()
    (message,) = Reassembly(role).receive(element.data, element.target)
    assert (message.kind, message.pool, message.target) == (kind, RUNSPACES, target)
    pool: Any = psrpcore.ClientRunspacePool() if role is Role.SERVER else psrpcore.ServerRunspacePool()
    if kind != 0x00010002:
        pool.state = ps.RunspacePoolState.Opened
    pool.receive_data(psrpcore.PSRPPayload(message.fragment, psrpcore.StreamType.default, target))
    event: psrpcore.PSRPEvent[Any, Any] | None = pool.next_event()
    assert event is not None
    return event


SESSION_CAPABILITY = """
<Obj RefId="0">
  <MS>
    <Version N="protocolversion">2.2</Version>
    <Version N="PSVersion">2.0</Version>
    <Version N="SerializationVersion">1.1.0.1</Version>
  </MS>
</Obj>
"""  # 3.1.5.3.15


def test_session_capability() -> None:
    event = event_of(0x00010002, SESSION_CAPABILITY)
    assert isinstance(event, psrpcore.SessionCapabilityEvent)
    assert [str(event.protocol_version), str(event.ps_version)] == ["2.2", "2.0"]


RUNSPACEPOOL_STATE = """
<Obj RefId="1">
  <MS>
    <I32 N="RunspaceState">2</I32>
  </MS>
</Obj>
"""  # 2.2.2.9


def test_runspacepool_state() -> None:
    event = event_of(0x00021005, RUNSPACEPOOL_STATE)
    assert isinstance(event, psrpcore.RunspacePoolStateEvent)
    assert event.state is ps.RunspacePoolState.Opened


SET_MAX_RUNSPACES = (
    '<Obj RefId="5"> <MS> <I32 N="MaxRunspaces">3</I32> <I64 N="ci">1</I64> </MS> </Obj>'  # 2.2.2.6
)
SET_MIN_RUNSPACES = (
    '<Obj RefId="6"> <MS> <I32 N="MinRunspaces">2</I32> <I64 N="ci">2</I64> </MS> </Obj>'  # 2.2.2.7
)


def test_numbers_of_runspaces() -> None:
    most, least = (
        event_of(0x00021002, SET_MAX_RUNSPACES, Role.CLIENT),
        event_of(0x00021003, SET_MIN_RUNSPACES, Role.CLIENT),
    )
    assert isinstance(most, psrpcore.SetMaxRunspacesEvent)
    assert isinstance(least, psrpcore.SetMinRunspacesEvent)
    assert (most.ci, most.count, least.ci, least.count) == (1, 3, 2, 2)


RUNSPACEPOOL_HOST_CALL = """
<Obj RefId="0"> <MS> <I64 N="ci">1</I64> <Obj N="mi" RefId="1"> <TN RefId="0">
<T>System.Management.Automation.Remoting.RemoteHostMethodId</T> <T>System.Enum</T> <T>System.ValueType</T>
<T>System.Object</T> </TN> <ToString>ReadLine</ToString> <I32>11</I32> </Obj> <Obj N="mp" RefId="2"> <TN RefId="1">
<T>System.Collections.ArrayList</T> <T>System.Object</T> </TN> <LST /> </Obj> </MS> </Obj>
"""  # 2.2.2.15, and by 2.2.2.27 a pipeline's too


def test_host_call() -> None:
    event = event_of(0x00021100, RUNSPACEPOOL_HOST_CALL)
    assert isinstance(event, psrpcore.RunspacePoolHostCallEvent)
    assert (event.ci, event.method_identifier, event.method_parameters) == (
        1,
        ps.HostMethodIdentifier.ReadLine,
        [],
    )
    assert not hostcalls.wants_secret(event)


def test_public_key_request() -> None:
    event = event_of(0x00010007, "<S></S>")  # 2.2.2.5
    assert isinstance(event, psrpcore.PublicKeyRequestEvent)


INFORMATION_RECORD = """
<Obj RefId="0">
  <TN RefId="0">
    <T>System.Management.Automation.InformationRecord</T>
    <T>System.Object</T>
  </TN>
  <ToString>Information Data</ToString>
  <Props>
    <S N="MessageData">Information Data</S>
    <S N="Source">Write-Information</S>
    <DT N="TimeGenerated">2015-03-09T11:00:06.7899543-07:00</DT>
    <Obj N="Tags" RefId="1">
      <TN RefId="1">
        <T>System.Collections.Generic.List`1[[System.String, mscorlib, Version=4.0.0.0, Culture=neutral]]</T>
        <T>System.Object</T>
      </TN>
      <LST />
    </Obj>
    <S N="User">DOMAIN\\UserName</S>
    <S N="Computer">ComputerFQID</S>
    <U32 N="ProcessId">64332</U32>
    <U32 N="NativeThreadId">21456</U32>
    <U32 N="ManagedThreadId">7</U32>
  </Props>
  <MS>
    <B N="WriteInformationStream">true</B>
  </MS>
</Obj>
"""  # 2.2.2.26


def test_information_record() -> None:
    found = record_of(event_of(0x00041011, INFORMATION_RECORD))
    assert found == Record(Stream.INFORMATION, Information("Information Data", "Write-Information"))


DICTIONARY = """
<Obj RefId="RefId-0"> <TN RefId="RefId-0"> <T>System.Collections.Hashtable</T> <T>System.Object</T> </TN> <DCT>
<En><S N="Key">key2</S><I32 N="Value">2</I32></En> <En><S N="Key">key1</S><I32 N="Value">1</I32></En> </DCT> </Obj>
"""  # 2.2.5.2.6.4


def test_dictionary_as_output() -> None:
    assert record_of(event_of(0x00041004, DICTIONARY)) == Record(Stream.OUTPUT, {"key2": 2, "key1": 1})


EXTENDED_PROPERTIES = """
<Obj RefId="RefId-0"> <TN RefId="RefId-0"> <T>System.Drawing.Point</T> <T>System.ValueType</T> <T>System.Object</T>
</TN> <ToString>{X=10,Y=20}</ToString> <Props> <B N="IsEmpty">false</B> <I32 N="X">10</I32> <I32 N="Y">20</I32>
</Props> <MS> <S N="Property1">This is an extended property</S> <S N="Property2">This is a second extended
property</S> </MS> </Obj>
"""  # 2.2.5.2.9, without its property set


def test_object_as_output() -> None:
    found = record_of(event_of(0x00041004, EXTENDED_PROPERTIES))
    assert found is not None
    point = found.value
    assert isinstance(point, RemoteObject)
    assert (point["x"], point["Y"], point["isempty"]) == (10, 20, False)
    assert point["Property1"] == "This is an extended property"
    assert point.types == ("System.Drawing.Point", "System.ValueType", "System.Object")
    assert found.text.splitlines()[:3] == ["IsEmpty   : False", "X         : 10", "Y         : 20"]


def test_output_without_an_object_is_null() -> None:
    assert record_of(event_of(0x00041004, "")) == Record(Stream.OUTPUT, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<Nil/>", None),
        ("<B>true</B>", True),
        ("<I32>-2147483648</I32>", -(2**31)),
        ("<U64>18446744073709551615</U64>", 2**64 - 1),
        ("<Db>-12.5</Db>", -12.5),
        ("<D>12.5</D>", Decimal("12.5")),
        ("<C>97</C>", "a"),
        ("<G>792e5b37-4505-47ef-b7d2-8711bb7affa8</G>", UUID("792e5b37-4505-47ef-b7d2-8711bb7affa8")),
        ("<URI>http://www.microsoft.com/</URI>", "http://www.microsoft.com/"),
        ("<Version>6.2.1.3</Version>", "6.2.1.3"),
        ("<SBK>get-command -type cmdlet</SBK>", "get-command -type cmdlet"),
        ("<BA>AQIDBA==</BA>", b"\x01\x02\x03\x04"),
        ("<TS>PT9.0269026S</TS>", timedelta(seconds=9, microseconds=26902)),
        ("<S>a_x000A_b_x005F_x0020_</S>", "a\nb_x0020_"),
    ],
)
def test_primitive_values_as_output(text: str, value: Any) -> None:
    found = record_of(event_of(0x00041004, text))
    assert found is not None
    assert found.value == value
    assert type(found.value) is type(value)
    assert to_python(found.value) == value
