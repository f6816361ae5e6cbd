"""The transports that take a guest, a real one under QEMU: our device, kernel vsock, vhost-device-vsock."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import socket as stdlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import hvsock
from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.errors import NotFoundError
from hvsock.fabric import paths
from hvsock.registry import Registry
from hvsock.testing import Features

assert sys.platform == "linux"

from benchmarks.vm.programs import CRATE, CRATE_VERSION, installed_vhost_device
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.listening import listen
from hvsock.hybrid.profiles import VHOST_DEVICE
from hvsock.selftest.hybrid import configured
from hvsock.vm import image
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import DEVICE_SOCKET
from hvsock.vm.runs import Run
from tests.vm.guest_scripts import agent
from tests.vm.support import PATIENCE, default_guest, started
from tests.vm.traffic.world import Asking, Guest, Kind, RemoteSocket, World

from .hybrid import CID, host, hybrid_pair, hybrid_setting
from .in_guest import OF_THE_HOST, take
from .probes import FAILED, WAIT_SECONDS, Lack, Setting, Way, outcome_of, run_probes
from .streams import run_suite

ROOT: Final = Path(__file__).parents[2]
BROUGHT: Final = (
    *(f"tests/matrix/{name}.py" for name in ("in_guest", "probes", "streams")),
    *(f"tests/vm/guest_scripts/{name}.py" for name in ("agent", "traffic")),
    *("benchmarks/__init__.py", "benchmarks/pairs.py"),
)
"""What a guest gets, in its /root."""
SUITE_SECONDS: Final = 1500.0
"""How long all of it may take in a guest."""
RATE_RUNS: Final = 3
"""Measurements of throughput, of which the median counts."""
PROMPT_SECONDS: Final = 8.0
"""For one step of what may fail: longer than an emulated guest takes, and short enough to wait for often."""
HAS: Final = Features(resets=False, delivers_before_reset=False)
"""Of a stream between a guest with Linux and its host."""
REMOTE: Final = replace(HAS, descriptor=False, sendfile=False)
"""Of both ends, as they are in reach: an agent calls the methods of the guest's, and has no files of the host."""

Column = dict[str, Any]


def bring(folder: Path) -> Path:
    """A folder with :data:`BROUGHT`, to go over a guest's files."""
    for name in BROUGHT:
        target = folder / "root" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return folder


@contextlib.contextmanager
def in_world(kind: Kind) -> Iterator[tuple[World, Guest]]:
    """A fabric with one guest, which this process is in."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as folder:
        world = World(Path(folder), {"web01": kind}, bring(Path(folder) / "brought"))
        before = os.environ.get(paths.FOLDER_VARIABLE)
        os.environ[paths.FOLDER_VARIABLE] = world.folder
        try:
            yield world, world.guest("web01")
        finally:
            world.close()
            os.environ.pop(paths.FOLDER_VARIABLE)
            if before is not None:
                os.environ[paths.FOLDER_VARIABLE] = before


def device_setting(world: World, guest: Guest) -> Setting:
    """The guest and its host; and the guest alone, over its kernel's loopback beside the device."""

    def host(type: int) -> hvsock.socket:
        return hvsock.socket(type=type)

    def inside(type: int) -> RemoteSocket:
        return guest.socket(type)

    aliases = itertools.count(62_000)

    def guid() -> ServiceId:
        alias = next(aliases)
        with Registry(os.path.join(world.folder, "registry")) as registry:
            return registry.register(f"alias {alias}", port_alias=alias).id

    numbered = VmId.from_cid(guest.cid)
    up, down, own = (HV_GUID_PARENT,) * 2, (guest.vm_id,) * 2, (HV_GUID_CHILDREN, HV_GUID_LOOPBACK)
    alone = Way(inside, inside, HV_GUID_LOOPBACK, HV_GUID_LOOPBACK, own, own)
    to_host = Way(inside, host, HV_GUID_CHILDREN, HV_GUID_PARENT, up, down)
    to_guest = Way(host, inside, HV_GUID_PARENT, guest.vm_id, down, up)
    return Setting(
        {
            "connect_parent": to_host,
            "connect_loopback": alone,
            "connect_vm_id": to_guest,
            "connect_cid": Way(host, inside, HV_GUID_PARENT, numbered, (numbered,) * 2, up),
            "connect_silohost": Lack(inside, "connect", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
            "listen_any": Way(inside, host, HV_GUID_WILDCARD, HV_GUID_PARENT, up, down),
            "listen_children": to_host,
            "listen_parent": to_guest,
            "listen_loopback": alone,
            "listen_vm_id": Way(inside, host, guest.vm_id, HV_GUID_PARENT, up, down),
            "listen_silohost": Lack(inside, "bind", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
        },
        to_guest,
        to_host,
        lambda: ServiceId.from_port(world.port()),
        guid,
        absent={"names_of_connectors": None},
    )


def rates(
    asking: Asking, accept: Callable[[], stdlib.socket], port: int, ways: tuple[str, ...]
) -> dict[str, float]:
    """Throughput in a guest, over that of a fabric in there: of the loopback, and up to the host."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RATE_RUNS):
        yardstick = _rate(asking, "fabric", "fabric")
        for way in ways:
            if way == "up":
                thread = threading.Thread(target=_take_one, args=(accept,))
                thread.start()
            words = (way, str(port)) if way == "up" else (way,)
            found[way].append(_rate(asking, "vsock", *words) / yardstick)
            if way == "up":
                thread.join()
    return {way: float(f"{statistics.median(found[way]):.2g}") for way in ways}


def _take_one(accept: Callable[[], stdlib.socket]) -> None:
    with accept() as sock:
        sock.settimeout(WAIT_SECONDS)
        take(sock)


def _rate(asking: Asking, transport: str, *words: str) -> float:
    return float(in_guest(asking, transport, "rate", *words))


def in_guest(asking: Asking, transport: str, *words: str) -> Any:
    """What :mod:`.in_guest` prints."""
    shell = f"HVSOCK_TRANSPORT={transport} exec python3 -m tests.matrix.in_guest {' '.join(words)} 2>/tmp/said"
    code, text = asking.output("sh", "-c", shell, seconds=SUITE_SECONDS)
    if code:
        _, why = asking.output("tail", "-n", "5", "/tmp/said")
        raise AssertionError(f"in the guest, {' '.join(words)} ended with {code}: {why.decode(errors='replace')}")
    return json.loads(text)


def worse(one: str, other: str) -> str:
    """Of the outcomes of two directions, that which fails."""
    return other if other.startswith(FAILED) and not one.startswith(FAILED) else one


def run_guest() -> dict[str, Column]:
    """Our device with a guest, and that guest's kernel."""
    with in_world(Kind("6.12", 2)) as (world, guest):
        guest.forget()  # its connections so far, which have a shorter time-out
        guest.answer_seconds = SUITE_SECONDS
        vsock = in_guest(guest, "vsock", "suite")
        device = run_probes(device_setting(world, guest))
        # one end of them is the kernel's AF_VSOCK
        vsock |= {name: device[name] for name in OF_THE_HOST}
        run = partial(run_suite, has=HAS, both=REMOTE, wait_seconds=WAIT_SECONDS)
        both = [run(partial(world.pair, guest, by_guest)) for by_guest in (True, False)]
        device |= {name: worse(both[0][name], both[1][name]) for name in both[0]}
        port = world.port()
        with world.listen(port) as listener:
            found = rates(guest, lambda: listener.accept()[0], port, ("loopback", "up"))
    return {
        "device": {"checks": device, "throughput": found["up"]},
        "vsock": {"checks": vsock, "throughput": found["loopback"]},
    }


class HybridGuest(Asking):
    """A guest behind vhost-device-vsock, whose agent is asked over a hybrid socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._ports = itertools.count(63_000)

    def link(self) -> stdlib.socket:
        """See :meth:`Asking.link`; the guest may have to start first."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return connect(self._path, agent.PORT, profile=VHOST_DEVICE, timeout=PROMPT_SECONDS)
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def service(self) -> ServiceId:
        """A fresh one."""
        return ServiceId.from_port(next(self._ports))


def run_vhost_device() -> Column:
    """The hybrid transport, against the real vhost-device-vsock.

    Raises:
        NotFoundError: it is not installed.
    """
    program = installed_vhost_device()
    if program is None:
        raise NotFoundError(f"{CRATE} is missing: cargo install {CRATE} --version {CRATE_VERSION} --locked")
    # newer kernels send more than 32 KiB at once in pieces, which vhost-device-vsock 0.3.0 drops
    made = image.ensure("6.1")
    with tempfile.TemporaryDirectory(prefix="hvsock-") as folder:
        path = os.path.join(folder, "v")
        device = (program, "--guest-cid", str(CID), "--socket", DEVICE_SOCKET, "--uds-path", path)
        settings = default_guest("web01", made, device=device)
        command = "export HVSOCK_TRANSPORT=vsock; cd /root && exec python3 -m tests.vm.guest_scripts.agent"
        archive = overlay(str(bring(Path(folder) / "brought")), command)
        vm_id = VmId.new()
        with (
            configured(path, vm_id, VHOST_DEVICE.name),
            started(Run(folder, "web01"), settings, made=made, overlay=archive),
        ):
            guest = HybridGuest(path)
            guest.answer_seconds = SUITE_SECONDS

            def inside(kind: int) -> RemoteSocket:
                return guest.socket(kind)

            setting = hybrid_setting(inside, inside, vm_id, guest.service, ServiceId.new)
            checks = run_probes(setting)
            lack = Lack(host, "connect", vm_id, errno.EADDRNOTAVAIL)
            forms = {**setting.forms, "connect_vm_id": lack}
            no_guid = replace(setting, forms=forms, port_service=ServiceId.new)
            checks["service_guid"] = outcome_of(no_guid, "connect_vm_id")
            pair = partial(hybrid_pair, inside, vm_id, guest.service, PROMPT_SECONDS)
            checks |= run_suite(pair, HAS, both=REMOTE, wait_seconds=PROMPT_SECONDS)
            with listen(path, 64_000, profile=VHOST_DEVICE) as listener:
                rate = rates(guest, listener.accept, 64_000, ("up",))["up"]
            guest.forget()
    return {"checks": checks, "throughput": rate}
