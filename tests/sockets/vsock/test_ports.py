"""ServiceIds as ports: the template, aliases that the host says once, and services without either."""

from __future__ import annotations

import errno
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.errors import NoFabricError

assert sys.platform == "linux"
from hvsock.fabric import client
from hvsock.sockets.vsock import ports

DEMO = ServiceId("765037a7-09e9-45b3-ba8c-3c3b3b987da0")
OTHER = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")


class Host:
    """The broker's method `services`."""

    def __init__(self) -> None:
        self.services: list[dict[str, Any]] = [
            {"id": str(DEMO), "name": "HV Socket Demo", "port_alias": 5000},
            {"id": str(OTHER), "name": "no alias", "port_alias": None},
        ]
        self.calls = 0
        self.gone = self.hangs = False

    def call(self, folder: str, method: str, *, within: float | None) -> list[dict[str, Any]]:
        assert method == "services"
        self.calls += 1
        if self.hangs:
            assert within is not None
            time.sleep(within)
            raise NoFabricError("the host did not answer")
        if self.gone:
            raise NoFabricError("the host is away")
        return self.services


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that answers calls, to a process that knows no alias yet."""
    made = Host()
    monkeypatch.setattr(client, "call", made.call)
    monkeypatch.setattr(ports, "_aliases", {})
    monkeypatch.setattr(ports, "_silent_until", 0.0)
    return made


@pytest.mark.parametrize("port", [0, 80, 2761, 0xFFFFFFFE])
def test_the_template_needs_no_host(port: int, host: Host) -> None:
    assert ports.of(ServiceId.from_port(port)) == ports.to_bind(ServiceId.from_port(port)) == port
    assert host.calls == 0


def test_a_fresh_port_is_the_kernels_choice(host: Host) -> None:
    assert ports.to_bind(SERVICE_WILDCARD) == 0xFFFFFFFF
    assert host.calls == 0


def test_an_alias_is_looked_up_once(host: Host) -> None:
    assert [ports.of(DEMO), ports.to_bind(DEMO), ports.of(DEMO)] == [5000] * 3
    assert host.calls == 1
    host.gone = True
    assert ports.of(DEMO) == 5000


def test_a_way_up_asks_again_after_a_while(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgets what the host does not say any more."""
    for _ in range(2):
        ports.learn(DEMO)
    assert host.calls == 1
    host.services[0]["port_alias"] = 5001
    monkeypatch.setattr(ports, "FRESH_SECONDS", -1.0)
    ports.learn(DEMO)
    assert ports.of(DEMO) == 5001
    host.services[0]["port_alias"] = None
    calls = host.calls
    with pytest.raises(OSError, match="no AF_VSOCK port") as caught:
        ports.learn(DEMO)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert host.calls == calls + 1, "the fabric inside is not asked in its place"


def test_a_way_up_does_not_wait_for_a_host_that_hangs(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks once, for all that want to know, and again after a while."""
    monkeypatch.setattr(ports, "LEARN_SECONDS", 0.05)
    host.hangs = True
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ports.learn, DEMO) for _ in range(4)]
        failures = [future.exception() for future in futures]
    assert sorted(str(one) for one in failures)[0].endswith("the host did not answer")
    assert sum("just now" in str(one) for one in failures) == 3
    assert {one.errno for one in failures if isinstance(one, OSError)} == {errno.ENETUNREACH}
    assert host.calls == 1
    ports.learn(ServiceId.from_port(80))
    host.hangs = False
    with pytest.raises(OSError, match="just now"):
        ports.learn(DEMO)
    monkeypatch.setattr(ports, "_silent_until", 0.0)
    ports.learn(DEMO)
    host.gone = True
    monkeypatch.setattr(ports, "FRESH_SECONDS", -1.0)
    for _ in range(2):  # one that is gone says so at once
        with pytest.raises(OSError, match="the host is away"):
            ports.learn(DEMO)


def test_a_service_without_a_port_is_told_what_to_do(host: Host) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match=r"no AF_VSOCK port.*hvsock service register.*--port-alias") as caught:
            ports.of(OTHER)
        assert caught.value.errno == errno.EADDRNOTAVAIL
    assert host.calls == 2
    host.services[1]["port_alias"] = 6000
    assert ports.of(OTHER) == 6000


def test_a_host_that_does_not_answer(host: Host) -> None:
    host.gone = True
    with pytest.raises(OSError, match="the host is away") as caught:
        ports.of(DEMO)
    assert caught.value.errno == errno.ENETUNREACH
    host.gone = False
    assert ports.of(DEMO) == 5000


@pytest.mark.parametrize("function", [ports.of, ports.to_bind])
def test_the_port_that_means_any_is_no_service(function: Any, host: Host) -> None:
    with pytest.raises(OSError, match="stands for any port") as caught:
        function(ServiceId.from_port(0xFFFFFFFF))
    assert caught.value.errno == errno.EADDRNOTAVAIL
