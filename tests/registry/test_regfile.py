"""The registry as a ``.reg`` file: byte for byte what regedit takes, and whatever else calls itself so."""

# ruff: noqa: RUF001 - names in many scripts look alike

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.addresses import ServiceId
from hvsock.errors import DuplicateError, UsageError
from hvsock.registry.entries import MAX_SERVICES, ServiceEntry, ServiceName, inbox_entries
from hvsock.registry.formats import regfile
from hvsock.registry.formats.regfile import dump_reg, load_reg
from tests.registry import strategies

GCS = r"HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
ONE = ServiceId("3049197c-facb-11e6-bd58-64006a7986d3")
TWO = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
V5 = "Windows Registry Editor Version 5.00\r\n\r\n"
KEY = f"[{GCS}\\{ONE}]\r\n"
NAMED = f'{KEY}"ElementName"="x"\r\n'


def utf16(text: str) -> bytes:
    return b"\xff\xfe" + text.encode("utf-16-le")


def test_the_file_byte_for_byte() -> None:
    entries = [*inbox_entries(0.0), ServiceEntry(ONE, 'say "hi" \\o/'), ServiceEntry(TWO, "служба 𝔘")]
    assert dump_reg(entries) == b"\xff\xfe" + (
        b"W\0i\0n\0d\0o\0w\0s\0 \0R\0e\0g\0i\0s\0t\0r\0y\0 \0E\0d\0i\0t\0o\0r\0 "
        b"\0V\0e\0r\0s\0i\0o\0n\0 \x005\0.\x000\x000\0\r\0\n\0\r\0\n\0"
        + (
            "[HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\"
            "GuestCommunicationServices\\3049197c-facb-11e6-bd58-64006a7986d3]\r\n"
            '"ElementName"="say \\"hi\\" \\\\o/"\r\n'
            "\r\n"
            "[HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\Virtualization\\"
            "GuestCommunicationServices\\3049197c-9a4e-4fbf-9367-97f792f16994]\r\n"
        ).encode("utf-16-le")
        + b'"\0E\0l\0e\0m\0e\0n\0t\0N\0a\0m\0e\0"\0=\0"\0'
        + b"\x41\x04\x3b\x04\x43\x04\x36\x04\x31\x04\x30\x04 \0\x35\xd8\x18\xdd"
        + b'"\0\r\0\n\0\r\0\n\0'
    )


def test_inbox_services_are_written_on_request() -> None:
    entries = inbox_entries(0.0)
    assert load_reg(dump_reg(entries)).services == ()
    assert load_reg(dump_reg(entries, inbox=True)).services == tuple(ServiceName(e.id, e.name) for e in entries)


@settings(max_examples=strategies.EXAMPLES)
@given(strategies.registries)
def test_there_and_back(entries: list[ServiceEntry]) -> None:
    content = load_reg(dump_reg(entries))
    assert content.services == tuple(ServiceName(entry.id, entry.name) for entry in entries)
    assert content.notes == ()


@settings(max_examples=strategies.EXAMPLES)
@given(strategies.registries)
@pytest.mark.soak
def test_there_and_back_as_hexadecimal_with_continuations(entries: list[ServiceEntry]) -> None:
    """The way in which regedit writes what it cannot write as a string."""
    lines = ["Windows Registry Editor Version 5.00", ""]
    for entry in entries:
        digits = [f"{byte:02x}" for byte in (entry.name + "\0").encode("utf-16-le")]
        rows = [",".join(digits[i : i + 25]) for i in range(0, len(digits), 25)]
        lines += [f"[{GCS}\\{entry.id.upper()}]", '"ElementName"=hex(1):' + ",\\\n  ".join(rows), ""]
    content = load_reg(utf16("\r\n".join(lines)))
    assert content.services == tuple(ServiceName(entry.id, entry.name) for entry in entries)


@pytest.mark.parametrize(
    "data",
    [
        utf16(V5 + NAMED),
        b"\xfe\xff" + (V5 + NAMED).encode("utf-16-be"),
        (V5 + NAMED).encode("utf-16-le"),
        b"\xef\xbb\xbf" + (V5 + NAMED).encode(),
        (V5 + NAMED).encode(),
        (V5 + NAMED).replace("\r\n", "\n").encode(),
        (V5 + NAMED).replace("\r\n", "\r").encode(),
        (V5 + NAMED).rstrip().encode(),
        (V5 + NAMED).replace(V5, "REGEDIT4\r\n").encode(),
        ("  " + V5 + NAMED).encode(),
        (V5 + NAMED.lower().replace("windows registry", "Windows Registry")).encode(),
        (V5 + NAMED.upper().replace('"X"', '"x"')).encode(),
        (V5 + NAMED.replace("HKEY_LOCAL_MACHINE", "HKLM")).encode(),
        (V5 + "; a comment [x]\r\n" + NAMED + ";\r\n").encode(),
        (V5 + NAMED.replace('"x"', '"x" ; a comment')).encode(),
        (V5 + NAMED.replace('Name"=', 'Name" \t = ')).encode(),
        (V5 + "\t" + NAMED.replace("]", "]  ; a comment")).encode(),
        (V5 + KEY + '"ElementName"=hex(1):78,00,00,00\r\n').encode(),
        (V5 + KEY + '"ElementName"=HEX(1):78,0,\\\r\n  00,00 ; a comment\r\n').encode(),
        (V5 + KEY + '"ElementName"=hex(1):78,\\ ; a comment\r\n  00,00,00,\r\n').encode(),
        (V5 + KEY + '"ElementName"=hex(00000001):78,00\r\n').encode(),
        ("REGEDIT4\r\n" + KEY + '"ElementName"=hex(1):78,00\r\n').encode(),
    ],
)
def test_one_service_written_in_many_ways(data: bytes) -> None:
    content = load_reg(data)
    assert content.services == (ServiceName(ONE, "x"),)
    assert content.notes == ()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('[HKEY_LOCAL_MACHINE\\SOFTWARE\\Other]\r\n"ElementName"="no service"\r\n', "1 key that"),
        ("[HKEY_CURRENT_USER\\x]\r\n[HKEY_USERS]\r\n", "2 keys that"),
        ("[-HKEY_CURRENT_USER\\x]\r\n", "1 key that"),
        (f'[{GCS}\\{TWO}\\Sub]\r\n"ElementName"="below"\r\n', "1 key that"),
        (f'[{GCS}s\\{TWO}]\r\n"ElementName"="beside"\r\n', "1 key that"),
        ('[HKEY_CURRENT_USER\\x]\r\n"Text"="two\r\n[lines]"\r\n', "1 key that"),
        (
            '[HKEY_CURRENT_USER\\x]\r\n"a"=hex:01,\\\r\n  02\r\n"b"=dword:00000001\r\n"c"=-\r\n@="d"\r\n',
            "1 key that",
        ),
        ('[HKEY_CURRENT_USER\\x]\r\nrubbish = [no, "value\r\n', "1 key that"),
        (f'{NAMED}"Purpose"="none"\r\n', "1 value other"),
        (f'{NAMED}@="x"\r\n"A\\"b\\\\"=dword:1\r\n"C"=hex(7):78,00,\\\r\n  00,00\r\n', "3 values other"),
        (f'{KEY}"Text"="two\r\nlines"\r\n"ElementName"="x"\r\n', "1 value other"),
    ],
)
def test_what_is_not_about_services_is_passed_over_and_counted(text: str, note: str) -> None:
    content = load_reg(utf16(V5 + text + ("" if KEY in text else NAMED)))
    assert content.services == (ServiceName(ONE, "x"),)
    (only,) = content.notes
    assert only.startswith(f"passed over {note}")


def test_the_key_of_all_services_and_its_values_are_no_surprise() -> None:
    assert load_reg(utf16(V5 + f"[{GCS}]\r\n\r\n" + NAMED)).notes == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"[{GCS}\\hello]\r\n", "line 3: not a GUID: 'hello'"),
        (f"\r\n[{GCS}\\{ONE}0]\r\n", "line 4: not a GUID"),
        (f"[{GCS}\\{{{ONE}}}]\r\n", "line 3: .*braces"),
        (f"[{GCS}\\00000000-0000-0000-0000-000000000000]\r\n", "line 3: .*cannot be registered"),
        (f"[{GCS}\\{ONE}\r\n", "line 3: a key without"),
        (f"[-{GCS}\\{ONE}]\r\n", "line 3: deletes"),
        (f"[-{GCS}]\r\n", "line 3: deletes"),
        (f"[ - {GCS.upper()}]\r\n", "line 3: deletes"),
        ("[-HKEY_LOCAL_MACHINE\\SOFTWARE]\r\n", "line 3: deletes"),
        ("[-HKEY_LOCAL_MACHINE]\r\n", "line 3: deletes"),
        (KEY, "line 3: .*no ElementName"),
        (f'{KEY}"Other"="x"\r\n', "line 3: .*no ElementName"),
        (f"{KEY}[{GCS}\\{TWO}]\r\n", f"line 3: {ONE} has no ElementName"),
        (f"{NAMED}{NAMED}", f"line 5: {ONE} is there twice"),
        (f"{NAMED}{NAMED.upper()}", f"line 5: {ONE} is there twice"),
        (f'{NAMED}"elementname"="y"\r\n', "line 5: a second ElementName"),
        (f'{KEY}"ElementName"=-\r\n', "line 4: ElementName is a string"),
        (f'{KEY}"ElementName"=\r\n', "line 4: ElementName is a string"),
        (f'{KEY}"ElementName"=dword:00000001\r\n', "line 4: ElementName is a string"),
        (f'{KEY}"ElementName"=hex:78,00\r\n', "line 4: ElementName is a string"),
        (f'{KEY}"ElementName"=hex(2):78,00\r\n', "line 4: ElementName is a string"),
        (f'{KEY}"ElementName"=hex(1):7800\r\n', "line 4: not bytes"),
        (f'{KEY}"ElementName"=hex(1):zz\r\n', "line 4: not bytes"),
        (f'{KEY}"ElementName"=hex(1):78\r\n', "line 4: not UTF-16"),
        (f'{KEY}"ElementName"=hex(1):00,d8,78,00\r\n', "line 4: not UTF-16"),
        (f'{KEY}"ElementName"=hex(1):78,00,00,00,78,00\r\n', "line 4: .*U\\+0000"),
        (f'{KEY}"ElementName"=hex(1):\r\n', "line 4: .*empty"),
        (f'{KEY}"ElementName"=""\r\n', "line 4: .*empty"),
        (f'{KEY}"ElementName"=" "\r\n', "line 4: .*empty"),
        (f'{KEY}"ElementName"="{"x" * 256}"\r\n', "line 4: .*at most 255"),
        (f'{KEY}"ElementName"="two\r\nlines"\r\n', "line 4: .*U\\+000D"),
        (f'{KEY}"ElementName"="a\\nb"\r\n', "line 4: unknown escape"),
        (f'{KEY}"ElementName"="x\r\n', "line 4: the string is not ended"),
        (f'{KEY}"ElementName"="x"y"\r\n', "line 4: the string is not ended"),
        (f'{KEY}"ElementName"="5000"\r\n', "line 4: .*GUID or a port"),
        (f'{KEY}"Text"="x\r\n"ElementName"="x"\r\n', "line 4: the string is not ended"),
        (f"{KEY}rubbish\r\n", "line 4: not understood: 'rubbish'"),
        (f'{KEY}"ElementName"\r\n', "line 4: not understood"),
        (f'{KEY}"Element\r\nName"="x"\r\n', "line 4: not understood"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"^{why}") as caught:
        load_reg(utf16(V5 + text))
    assert str(caught.value).isprintable()


def test_twice_the_same_service_is_a_duplicate() -> None:
    with pytest.raises(DuplicateError):
        load_reg(utf16(V5 + NAMED + NAMED))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "line 1: not a .reg file"),
        (b"\x89PNG\r\n", "line 1: not ASCII"),
        (b"\xff\xfeW", "line 1: not UTF-16-LE"),
        (utf16(V5) + b"\x00\xd8x\0", "line 3: not UTF-16-LE"),
        (b"\xef\xbb\xbf" + V5.encode() + b"\xff", "line 3: not UTF-8$"),
        (
            V5.encode() + KEY.encode() + '"ElementName"="é"\r\n'.encode("latin-1"),
            "line 4: not ASCII; save the file",
        ),
        (b"[key]\r\n", "line 1: not a .reg file"),
        (utf16("windows registry editor version 5.00\r\n"), "line 1: not a .reg file"),
        (b"REGEDIT4" * 1000, "line 1: not a .reg file"),
        (b"REGEDIT4\r\n" + KEY.encode() + b'"ElementName"=hex(1):e9\r\n', "line 3: not ASCII"),
        (bytes(regfile.MAX_REG_BYTES + 1), "the file has 67108865 bytes"),
    ],
    ids=range(11),
)
def test_files_that_are_none(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        load_reg(data)


@pytest.mark.soak
def test_more_services_than_a_registry_holds() -> None:
    keys = [f'[{GCS}\\{ServiceId.from_port(port)}]\n"ElementName"="n{port}"\n' for port in range(MAX_SERVICES + 1)]
    assert len(load_reg((V5 + "".join(keys[:-1])).encode()).services) == MAX_SERVICES
    with pytest.raises(UsageError, match=rf"^line {3 + 2 * MAX_SERVICES}: more than {MAX_SERVICES} services"):
        load_reg((V5 + "".join(keys)).encode())


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: utf16(V5 + text)))
def test_nothing_but_a_clear_refusal_comes_of_rubbish(data: bytes) -> None:
    try:
        load_reg(data)
    except UsageError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text


_LINES = st.sampled_from(
    [
        *KEY.splitlines(),
        f"[{GCS}\\{TWO}]",
        *("[x]", "[", "]", '"ElementName"="x"', '"ElementName"="', '"a"="', '"', "\\", '"a\\', "=", "@="),
        *("hex(1):78,\\", '"ElementName"=hex(1):78,00,\\', '"a"=hex:00,\\', "  00", "; x", ""),
    ]
)


@given(st.lists(_LINES, max_size=12).map("\r\n".join))
def test_nothing_but_a_clear_refusal_comes_of_shuffled_lines(text: str) -> None:
    try:
        content = load_reg(utf16(V5 + text))
    except UsageError as error:
        refusal = str(error)
        assert refusal.startswith("line ")
    else:
        assert len({service.id for service in content.services}) == len(content.services)


@pytest.mark.parametrize(
    "repeated",
    [
        '"',
        "\\",
        '\\"',
        '"\n',
        '"a\n',
        '"a"="\n',
        "[",
        "[\n",
        "[x]\n",
        ";",
        "\\\n",
        '"a"=hex:\\\n',
        " ",
        '"\\\n',
        "@=\\",
    ],
)
def test_hostile_files_take_linear_time(repeated: str) -> None:
    data = utf16(V5 + KEY.replace(GCS, "HKEY_USERS") + repeated * (400_000 // len(repeated)))
    start = time.process_time()
    with contextlib.suppress(UsageError):
        load_reg(data)
    assert time.process_time() - start < 3
