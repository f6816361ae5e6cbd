"""What HCS's settings come to, row by row of the matrix of expected errors that hcsshim's tests of hvsocket have.

Each row is a document for the VM, imported as an operator would, and real sockets over a real broker. The matrix
is of a host with Windows guests, and hcsshim skips its tests as unsteady: it is what was meant, not what was
seen.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.addresses import HV_GUID_PARENT, ServiceId
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry.formats.hcs import load_hcs
from hvsock.topology.sddl import parse_sddl
from tests.fabric.peers import fails_with

SERVICE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
SECONDS = 10
ALLOW = "D:P(A;;FA;;;SY)(A;;FA;;;BA)"
DENY = "D:P(D;;FA;;;WD)"
Config = Mapping[str, Any] | None
UNLISTED: Config = None
"""No line in the service table."""
WILDCARDS = ("any", "children")


class Scene:
    """A VM of its own, with a document, and a service of its own, in a fabric that many rows share."""

    def __init__(
        self, fabric: EmbeddedFabric, config: Config, *, registered: bool = False, kind: str = "vm"
    ) -> None:
        self.fabric = fabric
        self.service = ServiceId.new()
        self.vm = fabric.create_partition(f"{kind} of {self.service}", kind=kind)
        if registered:
            fabric.register(f"of classic VMs {self.service}", self.service)
        table = {} if config is None else {self.service: config}
        system = {"DefaultBindSecurityDescriptor": ALLOW, "ServiceTable": table}
        document = {"VirtualMachine": {"Devices": {"HvSocket": {"HvSocketConfig": system}}}}
        found = load_hcs(json.dumps(document).encode())
        fabric.registry.import_of_vm(self.vm.id, found.defaults, found.services)

    def host_listens(self, bound: str, guest: PartitionHandle | None = None) -> str:
        """How far a server of the host comes, and a client of the guest."""
        guest = guest or self.vm
        try:
            bound = guest.id if bound == "vm" else bound
            server = hvsock.create_server((bound, self.service), partition=self.fabric.host.folder)
        except OSError as error:
            return f"listen fails: {errno.errorcode[error.errno or 0]}"
        with server:
            try:
                near = hvsock.create_connection(("parent", self.service), SECONDS, partition=guest.folder)
            except OSError as error:
                return f"dial fails: {errno.errorcode[error.errno or 0]}"
            with near, server.accept()[0] as far:
                assert far.getsockname() == (guest.id, self.service)
                assert near.getpeername() == (HV_GUID_PARENT, self.service)
                near.sendall(b"hello")
                assert far.recv(5) == b"hello"
                return "works"

    def guest_listens(self, to: str, bound: str = "parent") -> str:
        """How far a client of the host comes."""
        with hvsock.create_server((bound, self.service), partition=self.vm.folder) as server:
            address = (self.vm.id if to == "vm" else to, self.service)
            try:
                near = hvsock.create_connection(address, SECONDS, partition=self.fabric.host.folder)
            except OSError as error:
                return f"dial fails: {errno.errorcode[error.errno or 0]}"
            with near, server.accept()[0] as far:
                assert far.getsockname() == (HV_GUID_PARENT, self.service)
                near.sendall(b"hello")
                assert far.recv(5) == b"hello"
                return "works"


HOST_LISTENS: tuple[tuple[str, Config, str], ...] = (
    ("vm", UNLISTED, "works"),
    ("vm", {}, "works"),
    ("vm", {"BindSecurityDescriptor": ALLOW}, "works"),
    ("vm", {"BindSecurityDescriptor": DENY}, "listen fails: EACCES"),
    ("vm", {"Disabled": True}, "listen fails: EINVAL"),
    *((word, {"AllowWildcardBinds": True}, "works") for word in WILDCARDS),
    *((word, {}, "dial fails: ECONNREFUSED") for word in WILDCARDS),
    *((word, {"AllowWildcardBinds": False}, "dial fails: ECONNREFUSED") for word in WILDCARDS),
    *((word, {"AllowWildcardBinds": True, "Disabled": True}, "dial fails: ECONNREFUSED") for word in WILDCARDS),
)
GUEST_LISTENS: tuple[tuple[str, Config, str], ...] = (
    ("vm", UNLISTED, "works"),
    ("vm", {"ConnectSecurityDescriptor": ALLOW}, "works"),
    ("vm", {"ConnectSecurityDescriptor": DENY}, "dial fails: EACCES"),
    ("vm", {"Disabled": True}, "dial fails: EINVAL"),
    *(
        (word, config, "dial fails: EADDRNOTAVAIL")
        for word in WILDCARDS
        for config in ({}, {"ConnectSecurityDescriptor": DENY}, {"Disabled": True})
    ),
)


def test_the_host_listens_and_the_guest_dials_parent(fabric: EmbeddedFabric) -> None:
    seen = [(row[0], row[1], Scene(fabric, row[1]).host_listens(row[0])) for row in HOST_LISTENS]
    assert tuple(seen) == HOST_LISTENS


@pytest.mark.parametrize("registered", [False, True])
def test_the_guest_listens_and_the_host_dials(fabric: EmbeddedFabric, registered: bool) -> None:
    seen = [
        (row[0], row[1], Scene(fabric, row[1], registered=registered).guest_listens(row[0]))
        for row in GUEST_LISTENS
    ]
    assert tuple(seen) == GUEST_LISTENS


def test_in_a_container_the_guest_listens_on_wildcard(fabric: EmbeddedFabric) -> None:
    scene = Scene(fabric, {"ConnectSecurityDescriptor": ALLOW}, kind="container")
    assert scene.guest_listens("vm", "any") == "works"
    assert scene.host_listens("vm") == "works"


def test_a_service_of_classic_vms_that_the_document_does_not_list(fabric: EmbeddedFabric) -> None:
    """The VM's own word on wildcard binds holds; another VM, of which there is no document, is reached by them."""
    other = fabric.create_partition("other")
    scene = Scene(fabric, UNLISTED, registered=True)
    assert scene.host_listens("vm") == "works"
    assert scene.host_listens("vm", other) == "works"
    for word in WILDCARDS:
        assert scene.host_listens(word) == "dial fails: ECONNREFUSED"
        assert scene.host_listens(word, other) == "works"


def test_a_service_that_is_listed_for_one_vm_is_not_opened_to_others(fabric: EmbeddedFabric) -> None:
    other = fabric.create_partition("other")
    scene = Scene(fabric, {"AllowWildcardBinds": True})
    assert scene.host_listens("any") == "works"
    assert scene.host_listens("any", other) == "dial fails: ECONNREFUSED"


OF_THIS_USER = (
    (f"D:P(A;;FA;;;S-1-22-1-{os.geteuid()})", "works"),
    (f"D:P(A;;GA;;;S-1-22-2-{os.getegid()})", "works"),
    (f"D:P(D;;FA;;;S-1-22-2-{os.getegid()})(A;;FA;;;WD)", "dial fails: EACCES"),
    (f"D:P(A;;FA;;;WD)(D;;FA;;;S-1-22-1-{os.geteuid()})", "works"),
    (f"D:P(A;;FR;;;S-1-22-1-{os.geteuid()})", "dial fails: EACCES"),
    (f"D:P(A;;FA;;;S-1-22-1-{os.geteuid() + 1})", "dial fails: EACCES"),
    ("D:P", "dial fails: EACCES"),
    ("D:NO_ACCESS_CONTROL", "works"),
)


def test_the_user_of_this_process_is_looked_at(fabric: EmbeddedFabric) -> None:
    """By its SIDs alone, though it is the owner of the fabric."""
    rows = [(sddl, {"ConnectSecurityDescriptor": sddl}) for sddl, _ in OF_THIS_USER]
    seen = [(sddl, Scene(fabric, config).guest_listens("vm")) for sddl, config in rows]
    assert tuple(seen) == OF_THIS_USER


def test_what_is_changed_counts_for_the_next_connect(fabric: EmbeddedFabric) -> None:
    """Also where the verdict before was remembered, and for defaults."""
    vm = fabric.create_partition("vm")
    host = fabric.host.folder
    fabric.register("echo", SERVICE)
    with hvsock.create_server(("parent", SERVICE), partition=vm.folder):
        hvsock.create_connection((vm.id, SERVICE), SECONDS, partition=host).close()
        fabric.registry.change_defaults(connect=parse_sddl(DENY))
        with fails_with(errno.EACCES, "denies"):
            hvsock.create_connection((vm.id, SERVICE), SECONDS, partition=host)
        fabric.registry.change_defaults(vm.id, connect=parse_sddl(ALLOW))
        hvsock.create_connection((vm.id, SERVICE), SECONDS, partition=host).close()
    found = client.call(host, "explain", vm="vm", service="echo", source="host")
    assert "yes: ACE " in " ".join(check["found"] for check in found["checks"])


def test_guests_are_told_nothing_of_descriptors(fabric: EmbeddedFabric) -> None:
    vm = fabric.create_partition("vm")
    fabric.register("echo", SERVICE)
    fabric.registry.change_settings("echo", connect=parse_sddl("D:P(D;;FA;;;S-1-5-83-0)"))
    with (
        hvsock.create_server(("any", SERVICE), partition=fabric.host.folder),
        pytest.raises(ConnectionRefusedError) as caught,
    ):
        hvsock.create_connection(("parent", SERVICE), SECONDS, partition=vm.folder)
    assert "ACE" not in str(caught.value)
