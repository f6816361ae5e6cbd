"""Forwards: what may be one, how it is kept, and that it goes through every format that has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import ServiceId
from hvsock.errors import UsageError
from hvsock.registry import Imported, Registry, ServiceEntry, ServiceName
from hvsock.registry.formats.jsonfile import dump_json, load_json
from hvsock.registry.forwards import Forward, check_forward, parse_forward
from hvsock.topology.access import Settings

ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
WEB = Forward("/run/web.sock")
TCP = Forward("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("text", "forward", "written"),
    [
        ("unix:/run/web.sock", WEB, None),
        ("unix:/run/a:b c/Grüße", Forward("/run/a:b c/Grüße"), None),
        ("unix:/" + "x" * 106, Forward("/" + "x" * 106), None),
        ("tcp:127.0.0.1:8080", TCP, None),
        ("tcp:127.255.0.3:1", Forward("127.255.0.3", 1), None),
        ("tcp:[::1]:65535", Forward("::1", 65_535), None),
        ("tcp:[0:0::1]:080", Forward("::1", 80), "tcp:[::1]:80"),
    ],
)
def test_what_is_a_forward(text: str, forward: Forward, written: str | None) -> None:
    assert parse_forward(text) == forward
    assert str(forward) == (written or text)
    assert check_forward(forward) == forward


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a forward is like unix:"),
        ("/run/web.sock", "a forward is like unix:"),
        ("udp:127.0.0.1:53", "a forward is like unix:"),
        ("UNIX:/run/web.sock", "a forward is like unix:"),
        ("unix:", "is absolute"),
        ("unix:web.sock", "is absolute"),
        ("unix:@abstract", "is absolute"),
        ("unix:/run/", "not of a folder"),
        ("unix:/run/\0x", "printable"),
        ("unix:/run/\nx", "printable"),
        ("unix:/run/\udc80", "printable"),
        ("unix:/" + "x" * 107, "at most 107 bytes, not 108"),
        ("unix:/" + "ü" * 54, "at most 107 bytes, not 109"),
        ("tcp:127.0.0.1", "a forward to TCP is like"),
        ("tcp:8080", "a forward to TCP is like"),
        ("tcp:localhost:8080", "a forward to TCP is like"),
        ("tcp:::1:8080", "in brackets"),
        ("tcp:[127.0.0.1]:8080", "in brackets"),
        ("tcp:10.0.0.1:8080", "10.0.0.1 is no loopback address"),
        ("tcp:0.0.0.0:8080", "is no loopback address"),
        ("tcp:[::]:8080", "is no loopback address"),
        ("tcp:[fe80::1%lo]:8080", "is no loopback address"),
        ("tcp:[::1%lo]:8080", "is no loopback address"),
        ("tcp:127.0.0.1:0", "a TCP port is 1 to 65535"),
        ("tcp:127.0.0.1:65536", "a TCP port is 1 to 65535"),
        ("tcp:127.0.0.1:", "a TCP port is 1 to 65535"),
        ("tcp:127.0.0.1:+80", "a TCP port is 1 to 65535"),
        ("tcp:127.0.0.1:" + "9" * 10_000, "a TCP port is 1 to 65535"),
        (None, "not NoneType"),
    ],
)
def test_what_is_none(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_forward(text)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@given(st.text() | st.builds(lambda a, b: f"tcp:{a}:{b}", st.ip_addresses(), st.integers()))
def test_anything_is_a_forward_or_refused(text: str) -> None:
    try:
        found = parse_forward(text)
    except UsageError:
        return
    assert parse_forward(str(found)) == found


def test_a_forward_that_nobody_parsed_is_checked() -> None:
    for bad in (Forward("10.0.0.1", 80), Forward("web.sock"), Forward("127.0.0.1", -1)):
        with pytest.raises(UsageError):
            check_forward(bad)


def test_it_is_kept_changed_and_taken_back(tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        entry = registry.register("web", ONE, forward=WEB, now=1.0)
        assert entry.forward == WEB
        with Registry(tmp_path) as other:
            assert other.get(ONE) == entry
            assert other.set_forward("WEB", TCP, now=2.0).changed == 2.0
            version = other.version()
            assert other.set_forward("web", TCP, now=3.0).changed == 2.0
            assert other.version() == version
        assert registry.find("web").forward == TCP
        assert registry.set_enabled("web", False).forward == TCP
        assert registry.set_forward("web", None).forward is None
        assert registry.find("web").settings == Settings(enabled=False)
        with pytest.raises(UsageError, match="loopback"):
            registry.set_forward("web", Forward("10.0.0.1", 80))
        with pytest.raises(UsageError, match="absolute"):
            registry.register("other", forward=Forward("web.sock"))
        assert registry.find("web").forward is None


def test_an_inbox_service_takes_none(tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        with pytest.raises(UsageError, match="'Heartbeat' is an in-box service, which has its own programs"):
            registry.set_forward("Heartbeat", WEB)
        assert registry.find("Heartbeat").forward is None


def test_it_is_exported_and_imported(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with Registry(tmp_path / "one") as one, Registry(tmp_path / "other") as other:
        one.register("web", ONE, forward=TCP)
        document = dump_json(one.entries())
        other.import_entries(load_json(document, now=0.0).services)
        assert other.get(ONE) == one.get(ONE)
        # of a .reg file come id and name alone, and what it does not say stays
        assert other.import_entries([ServiceName(ONE, "Web 2")], replace=True) == Imported(0, 1, 0)
        found = other.get(ONE)
        assert found is not None
        assert (found.name, found.forward) == ("Web 2", TCP)


@pytest.mark.parametrize("bad", ["", "tcp:10.0.0.1:80", 5, {}])
def test_a_document_with_a_bad_forward_is_refused(bad: object) -> None:
    service = {"id": ONE, "name": "web", "forward": bad}
    document = {"format": "hvsock-registry", "version": 1, "services": [service]}
    with pytest.raises(UsageError, match=r"services\[0\]: "):
        load_json(json.dumps(document).encode(), now=0.0)


def test_a_document_of_an_earlier_version_says_nothing_of_forwards() -> None:
    document = {"format": "hvsock-registry", "version": 1, "services": [{"id": ONE, "name": "web"}]}
    assert load_json(json.dumps(document).encode(), now=0.0).services == [ServiceEntry(ONE, "web")]
