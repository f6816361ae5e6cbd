"""The methods of management: what they tell, to whom, and what they refuse."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import errors
from hvsock.addresses import HV_GUID_PARENT, ServiceId, VmId
from hvsock.errors import HvsockError, NoFabricError, NotFoundError, ProtocolError, RefusedError, UsageError
from hvsock.fabric import client, messages
from hvsock.fabric.broker import broker as broker_module
from hvsock.fabric.broker import calls as module
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import Registry
from hvsock.topology.access import Allowed
from tests.fabric.peers import control, open_folder, running
from tests.registry.processes import User, in_child

NOBODY = 65534
ADMINS = 54321
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: run the tests as root")


@pytest.fixture
def guest(fabric: EmbeddedFabric) -> PartitionHandle:
    return fabric.create_partition("web01")


def host_call(fabric: EmbeddedFabric, method: str, **parameters: Any) -> Any:
    return client.call(fabric.host.folder, method, **parameters)


# -- partitions


def test_partitions_are_made_listed_and_removed(fabric: EmbeddedFabric) -> None:
    vm = host_call(fabric, "partition.create", name="web01", kind="vm", group="blue")
    box = host_call(fabric, "partition.create", name="box", kind="container", parent="WEB01")
    inner = host_call(fabric, "partition.create", name="inner", kind="container", parent=box["id"])
    assert (vm["parent"], box["parent"], inner["parent"]) == ("host", "web01", "box")
    assert vm["group"] == "blue"
    listed = host_call(fabric, "partition.list")
    assert [one["name"] for one in listed] == ["host", "web01", "box", "inner"]
    assert listed[1:] == [vm, box, inner]
    for one in listed:
        assert client.call(one["folder"], "ping")["partition"] == ("host" if one["name"] == "host" else None)
        assert sorted(os.listdir(one["folder"])) == ["seqpacket", "stream"]
    with pytest.raises(UsageError, match="remove box first"):
        host_call(fabric, "partition.remove", name="web01")
    assert host_call(fabric, "partition.remove", name="inner") == inner
    host_call(fabric, "partition.remove", name=box["id"])
    host_call(fabric, "partition.remove", name="Web01")
    assert [one["name"] for one in host_call(fabric, "partition.list")] == ["host"]
    assert os.listdir(f"{fabric.folder}/partitions") == ["host"]
    with pytest.raises(NoFabricError):
        client.call(vm["folder"], "ping")


def test_every_partition_has_a_cid(fabric: EmbeddedFabric) -> None:
    asked = host_call(fabric, "partition.create", name="asked", kind="vm", cid=4_000_000_000)
    first = host_call(fabric, "partition.create", name="first", kind="vm")
    box = host_call(fabric, "partition.create", name="box", kind="container")
    assert (asked["cid"], first["cid"], box["cid"]) == (4_000_000_000, 3, 4)
    host_call(fabric, "partition.remove", name="first")
    fabric.restart()
    assert host_call(fabric, "partition.create", name="next", kind="vm")["cid"] == 5, "3 rests for a time"
    assert [one["cid"] for one in host_call(fabric, "partition.list")] == [2, 4_000_000_000, 4, 5]


def test_a_vm_id_of_a_cid_means_its_partition(fabric: EmbeddedFabric) -> None:
    made = host_call(fabric, "partition.create", name="vm", kind="vm", cid=77)
    for vm_id, expected in ((VmId.from_cid(77), errno.ECONNREFUSED), (VmId.from_cid(78), errno.EHOSTUNREACH)):
        found = host_call(fabric, "explain", vm=vm_id, service=str(fabric.register(f"to {vm_id}").id))
        assert found["error"]["errno"] == expected
        with hvsock.socket(partition=fabric.host.folder) as sock, pytest.raises(OSError) as caught:  # noqa: PT011
            sock.connect((vm_id, found["service_id"]))
        assert caught.value.errno == expected
    service = fabric.register("Demo").id
    with (
        hvsock.create_server(("parent", service), partition=made["folder"]) as listener,
        hvsock.create_connection((VmId.from_cid(77), service), partition=fabric.host.folder) as connected,
    ):
        accepted, peer = listener.accept()
        accepted.close()
        assert peer.vm_id == HV_GUID_PARENT
        assert connected.getpeername() == (VmId.from_cid(77), service)


def test_partitions_are_there_again_after_a_restart(fabric: EmbeddedFabric) -> None:
    made = host_call(fabric, "partition.create", name="wäb", kind="vm", id=str(VmId.new()), group="gruppe ü")
    before = host_call(fabric, "partition.list")
    fabric.restart()
    assert host_call(fabric, "partition.list") == before
    assert client.call(made["folder"], "ping")["partition"] is None


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        ({}, UsageError),
        ({"name": "x"}, UsageError),
        ({"name": 5, "kind": "vm"}, UsageError),
        ({"name": "", "kind": "vm"}, UsageError),
        ({"name": " x", "kind": "vm"}, UsageError),
        ({"name": "host", "kind": "vm"}, UsageError),
        ({"name": "parent", "kind": "vm"}, UsageError),
        ({"name": "a\nb", "kind": "vm"}, UsageError),
        ({"name": "../../etc", "kind": "vm", "id": "../../etc"}, UsageError),
        ({"name": "x", "kind": "host"}, UsageError),
        ({"name": "x", "kind": "pod"}, UsageError),
        ({"name": "x", "kind": "vm", "parent": "nobody"}, NotFoundError),
        ({"name": "x", "kind": "vm", "parent": str(VmId.new())}, NotFoundError),
        ({"name": "x", "kind": "vm", "id": "nonsense"}, UsageError),
        ({"name": "x", "kind": "vm", "id": HV_GUID_PARENT}, errors.DuplicateError),
        ({"name": "taken", "kind": "vm"}, errors.DuplicateError),
        ({"name": "x", "kind": "vm", "group": ["a"]}, UsageError),
        ({"name": "x", "kind": "vm", "group": "g" * 101}, UsageError),
        ({"name": "x", "kind": "vm", "group": "a\x00b"}, UsageError),
        ({"name": "x", "kind": "vm", "cid": 3}, errors.DuplicateError),
        ({"name": "x", "kind": "vm", "cid": 2}, UsageError),
        ({"name": "x", "kind": "vm", "cid": 0}, UsageError),
        ({"name": "x", "kind": "vm", "cid": 0xFFFFFFFF}, UsageError),
        ({"name": "x", "kind": "vm", "cid": "7"}, UsageError),
        ({"name": "x", "kind": "vm", "id": str(VmId.from_cid(7))}, errors.DuplicateError),
        ({"name": "x", "kind": "vm", "owner": "root"}, UsageError),
        ({"name": "x", "kind": "vm", "owner": True}, UsageError),
        ({"name": "x", "kind": "vm", "owner": -1}, UsageError),
        ({"name": "x", "kind": "vm", "owner": 0xFFFFFFFF}, UsageError),
        ({"name": "x", "kind": "vm", "owner": 1 << 64}, UsageError),
        ({"name": "x", "kind": "vm", "owner": 1.5}, UsageError),
    ],
)
def test_a_partition_that_cannot_be_leaves_nothing(
    parameters: dict[str, Any], kind: type[HvsockError], fabric: EmbeddedFabric
) -> None:
    fabric.create_partition("taken")
    before = host_call(fabric, "partition.list")
    with pytest.raises(kind):
        host_call(fabric, "partition.create", **parameters)
    assert host_call(fabric, "partition.list") == before
    assert len(os.listdir(f"{fabric.folder}/partitions")) == 2


def test_a_lone_surrogate_gets_nowhere(fabric: EmbeddedFabric) -> None:
    """JSON may spell what is no text, which no file takes."""
    for name in ("name", "group", "vm", "service", "parent", "method"):
        spelt = '"\\ud800"'
        call = {"method": "partition.create", "name": "x", "kind": "vm", "group": "g"}
        if name in ("vm", "service"):
            call = {"method": "resolve"}
        body = json.dumps({**call, name: "@"}).replace('"@"', spelt).encode()
        with control(fabric.host.folder) as sock:
            sock.sendall(_request(body))
            head = sock.recv(messages.REPLY_HEADER_BYTES)
            assert messages.parse_reply_header(head)[0] != 0
    assert host_call(fabric, "ping")


def _request(body: bytes) -> bytes:
    """A call with parameters that were not checked."""
    whole = bytearray(messages.Request(messages.Op.CALL, call={"method": "x"}).pack())
    size = messages.REQUEST_BYTES - messages.MAX_CALL_BYTES
    whole[20:24] = len(body).to_bytes(4, "little")
    return bytes(whole[:size]) + body.ljust(messages.MAX_CALL_BYTES, b"\0")


def test_there_is_a_bound_on_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "MAX_PARTITIONS", 3)
    with EmbeddedFabric() as fabric:
        fabric.create_partition("one")
        fabric.create_partition("two")
        with pytest.raises(UsageError, match="has 3 partitions, the most"):
            fabric.create_partition("three")
        fabric.remove_partition("one")
        fabric.create_partition("three")


@pytest.mark.parametrize("at", ["save_tree", "make_partition", "control_socket"])
def test_a_partition_that_cannot_be_made_leaves_nothing(
    at: str, fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"hvsock.fabric.broker.folder.FabricFolder.{at}", full)
        with pytest.raises(HvsockError, match="No space left"):
            fabric.create_partition("web01")
    assert os.listdir(f"{fabric.folder}/partitions") == ["host"]
    fabric.create_partition("web01")


def test_a_partition_whose_removal_cannot_be_written_down_stays(
    fabric: EmbeddedFabric, guest: PartitionHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hvsock.fabric.broker.folder.FabricFolder.save_tree", full)
        with pytest.raises(HvsockError, match="No space left"):
            fabric.remove_partition("web01")
    assert client.call(guest.folder, "ping")
    fabric.remove_partition("web01")


def test_settings_for_a_removed_partition_are_forgotten(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    service = fabric.register("Demo")
    fabric.registry.set_enabled("Demo", False, guest.id)
    fabric.remove_partition("web01")
    with_settings = True
    for _ in range(1000):
        entry = fabric.registry.get(service.id)
        assert entry is not None
        with_settings = bool(entry.per_vm)
        if not with_settings:
            break
    assert not with_settings


# -- who may


@root_only
def test_what_users_of_the_host_may_do() -> None:
    with open_folder() as folder, running(folder, admin_gid=ADMINS, shared=True):
        host = f"{folder}/partitions/host"

        def create() -> str:
            return str(client.call(host, "partition.create", name="made", kind="vm")["name"])

        def look() -> Any:
            return client.call(host, "status")["partitions"][0]["name"], client.call(host, "ping")["partition"]

        for stranger in (User(NOBODY, NOBODY), User(NOBODY, NOBODY, (1, 2, 3))):
            assert in_child(look, stranger) == ("host", "host")
            with pytest.raises(RefusedError, match="owner"):
                in_child(create, stranger)
            with pytest.raises(RefusedError, match="owner"):
                in_child(lambda: client.call(host, "partition.remove", name="made"), stranger)
        for admin in (User(NOBODY, ADMINS), User(NOBODY, NOBODY, (7, ADMINS, 8))):
            assert in_child(create, admin) == "made"
            assert in_child(lambda: client.call(host, "partition.remove", name="made")["name"], admin) == "made"


@root_only
def test_a_user_in_more_groups_than_can_be_seen_is_none_of_the_admins() -> None:
    with open_folder() as folder, running(folder, admin_gid=ADMINS, shared=True):
        many = User(NOBODY, NOBODY, (*range(1000, 1300), ADMINS))
        with pytest.raises(RefusedError):
            in_child(
                lambda: client.call(f"{folder}/partitions/host", "partition.create", name="m", kind="vm"), many
            )
        primary = User(NOBODY, ADMINS, tuple(range(1000, 1300)))
        in_child(
            lambda: client.call(f"{folder}/partitions/host", "partition.create", name="m", kind="vm"), primary
        )


@root_only
def test_without_shared_nobody_else_gets_in(fabric: EmbeddedFabric) -> None:
    os.chmod(fabric.folder, 0o755)
    with pytest.raises(PermissionError):
        in_child(lambda: client.call(fabric.host.folder, "ping"), User(NOBODY, NOBODY))


@root_only
def test_a_partition_may_be_given_to_a_user() -> None:
    with open_folder() as folder, running(folder, shared=True):
        made = client.call(f"{folder}/partitions/host", "partition.create", name="m", kind="vm", owner=NOBODY)
        assert in_child(lambda: client.call(made["folder"], "ping"), User(NOBODY, NOBODY))["partition"] is None
        with pytest.raises(PermissionError):
            in_child(lambda: client.call(made["folder"], "ping"), User(1234, 1234))


@root_only
def test_the_settings_of_a_service_say_who_may_bind_and_connect() -> None:
    with open_folder() as folder, running(folder, shared=True):
        host = f"{folder}/partitions/host"
        with Registry(f"{folder}/registry") as registry:
            service = registry.register("Demo")

            def serve() -> None:
                hvsock.create_server(("loopback", service.id), partition=host).close()

            def use() -> None:
                hvsock.create_connection(("loopback", service.id), 5, partition=host).close()

            stranger = User(NOBODY, NOBODY)
            with hvsock.create_server(("loopback", service.id), partition=host):
                for act in (serve, use):
                    with pytest.raises(PermissionError):
                        in_child(act, stranger)
                registry.change_settings("Demo", connect=Allowed(uids=frozenset({NOBODY})))
                in_child(use, stranger)
            registry.change_settings("Demo", bind=Allowed(everyone=True))
            in_child(serve, stranger)


@pytest.mark.parametrize("method", ["partition.create", "partition.remove", "partition.list", "status"])
def test_guests_manage_nothing(method: str, fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    with pytest.raises(RefusedError, match="only the host"):
        client.call(guest.folder, method, name="web01", kind="vm")
    assert len(host_call(fabric, "partition.list")) == 2


def test_a_guest_learns_no_names_and_no_reasons(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    other = fabric.create_partition("secret")
    service = fabric.register("Demo")
    with hvsock.create_server((other.id, service.id), partition=fabric.host.folder):
        explained = client.call(guest.folder, "explain", vm="parent", service=service.id)
        assert explained["error"] == {
            "errno": 111,
            "name": "ECONNREFUSED",
            "reason": None,
            "text": "nothing listens there that takes a connection from here",
        }
        assert (explained["ok"], explained["source"], explained["checks"]) == (False, None, [])
        with pytest.raises(ConnectionRefusedError) as refused:
            hvsock.create_connection(("parent", service.id), 5, partition=guest.folder)
        told = f"{explained} {refused.value}"
        for secret in ("secret", other.id, "web01", "host"):
            assert secret not in told
    for vm in ("secret", "web01", "host"):
        with pytest.raises(NotFoundError, match="no partition is called"):
            client.call(guest.folder, "resolve", vm=vm, service=None)
        with pytest.raises(RefusedError):
            client.call(guest.folder, "explain", vm=vm, service=service.id)
    with pytest.raises(RefusedError):
        client.call(guest.folder, "explain", source="secret", vm="parent", service=service.id)
    cid = next(one["cid"] for one in host_call(fabric, "partition.list") if one["name"] == "secret")
    answers = [
        client.call(guest.folder, "explain", vm=vm, service=service.id)["error"]
        for vm in (other.id, VmId.from_cid(cid), VmId.new(), VmId.from_cid(cid + 1000))
    ]
    assert answers == answers[:1] * 4, "whether there is such a partition is not told"


# -- names and explanations


def test_names_are_resolved(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    service = fabric.register("HV Socket Demo")
    assert host_call(fabric, "resolve", vm="WEB01", service="hv socket demo") == {
        "vm_id": guest.id,
        "cid": 3,
        "service_id": service.id,
    }
    assert client.call(guest.folder, "resolve", vm=None, service="HV Socket Demo")["service_id"] == service.id
    assert hvsock.resolve(("web01", "HV Socket Demo"), fabric.host.folder) == (guest.id, service.id)
    for vm, name in (("web02", None), (None, "HV Socket Dem")):
        with pytest.raises(NotFoundError):
            host_call(fabric, "resolve", vm=vm, service=name)


def test_members_of_a_group_and_parents_know_names(fabric: EmbeddedFabric) -> None:
    one = fabric.create_partition("one", group="g")
    two = fabric.create_partition("two", group="g")
    box = fabric.create_partition("box", "container", parent="one")
    stranger = fabric.create_partition("stranger", group="h")
    assert client.call(one.folder, "resolve", vm="two")["vm_id"] == two.id
    assert client.call(one.folder, "resolve", vm="box")["vm_id"] == box.id
    for asking, name in ((box, "one"), (two, "box"), (stranger, "one")):
        with pytest.raises(NotFoundError):
            client.call(asking.folder, "resolve", vm=name)


def test_explanations_follow_the_verdict(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    service = fabric.register("Demo")
    explain: Callable[..., Any] = lambda **more: host_call(  # noqa: E731
        fabric, "explain", source="web01", vm="parent", service="Demo", **more
    )
    found = explain()
    assert (found["ok"], found["error"]["reason"], found["source"]) == (False, "no-listener", "web01")
    assert found["checks"][-1]["ok"] is False
    with hvsock.create_server(("children", service.id), partition=fabric.host.folder):
        assert explain()["ok"] is True
        assert explain(type=5)["error"]["reason"] == "wrong-type"
        assert client.call(guest.folder, "explain", vm="parent", service=service.id)["ok"] is True
        fabric.registry.set_enabled("Demo", False)
        assert explain()["error"]["reason"] == "disabled"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"vm": "parent"},
        {"vm": 1, "service": 2},
        {"vm": "loopback", "service": "Demo", "type": "x"},
        {"vm": "loopback", "service": "Demo", "type": [1]},
        {"vm": "loopback", "service": "Demo", "type": -1},
        {"vm": "loopback", "service": "Demo", "type": 1 << 70},
        {"vm": "loopback", "service": "Demo", "source": {}},
    ],
)
def test_an_explanation_of_nonsense_is_refused(parameters: dict[str, Any], fabric: EmbeddedFabric) -> None:
    fabric.register("Demo")
    with pytest.raises(UsageError):
        host_call(fabric, "explain", **parameters)
    assert host_call(fabric, "ping")


def test_services_that_are_enabled_are_listed_for_everybody(
    fabric: EmbeddedFabric, guest: PartitionHandle
) -> None:
    service = fabric.registry.register("Demo", port_alias=5000)
    fabric.register("Disabled")
    fabric.registry.set_enabled("Disabled", False, guest.id)
    names = {one["name"]: one for one in client.call(guest.folder, "services")}
    assert names["Demo"] == {"id": service.id, "name": "Demo", "port_alias": 5000}
    assert "Disabled" not in names
    assert "Disabled" in {one["name"] for one in host_call(fabric, "services")}


def test_a_port_alias_stands_for_its_service(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    service = fabric.registry.register("Demo", port_alias=5000)
    with (
        hvsock.create_server(("any", "5000"), partition=fabric.host.folder) as listener,
        hvsock.create_connection(("parent", "5000"), 5, partition=guest.folder),
        listener.accept()[0] as accepted,
    ):
        assert listener.getsockname().service_id == service.id
        assert accepted.getsockname() == (guest.id, service.id)


# -- the frame


def test_an_unknown_method_and_an_answer_that_is_too_long_are_refused(
    fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no method 'nonsense'"):
        host_call(fabric, "nonsense")
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 10)
    with pytest.raises(HvsockError, match="10 is the most"):
        host_call(fabric, "ping")


def test_a_call_that_does_not_fit_is_the_callers_mistake(fabric: EmbeddedFabric) -> None:
    with pytest.raises(UsageError):
        host_call(fabric, "resolve", service="x" * 3000)


def test_another_version_is_named_as_such(fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages.Request, "pack", lambda request: b"HVS\x02".ljust(messages.REQUEST_BYTES, b"\0"))
    with pytest.raises(ProtocolError, match="version"):
        host_call(fabric, "ping")


def test_no_broker_is_told_as_such(fabric: EmbeddedFabric, tmp_path: object) -> None:
    fabric.close()
    with pytest.raises(NoFabricError, match="hvsock up"):
        host_call(fabric, "ping")
    with pytest.raises(NoFabricError):
        client.call(f"{tmp_path}/nothing", "ping")


def test_a_defect_in_a_method_harms_its_caller_alone(
    fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*anything: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(module._METHODS, "resolve", defect)
    with pytest.raises(NoFabricError, match="ended before it answered"):
        host_call(fabric, "resolve")
    assert "a defect of the broker" in caplog.text
    assert host_call(fabric, "status")["connecting"] == 0


def test_the_status_of_a_fabric_with_nothing_in_it(fabric: EmbeddedFabric) -> None:
    status = host_call(fabric, "status")
    assert status["folder"] == fabric.folder
    assert status["pid"] == os.getpid()
    assert status["transport"] == "fabric"
    assert (status["connecting"], status["undelivered"], status["bad_requests"]) == (0, 0, 0)
    assert status["services"][-1]["name"] == "(not registered)"
    assert [one["name"] for one in status["partitions"]] == ["host"]


def test_what_belongs_to_no_service_any_more_is_in_one_row(fabric: EmbeddedFabric, guest: PartitionHandle) -> None:
    service = fabric.register("Demo")
    with (
        hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener,
        hvsock.create_connection(("parent", service.id), 5, partition=guest.folder),
        listener.accept()[0],
    ):
        fabric.registry.unregister("Demo")
        rest = host_call(fabric, "status")["services"][-1]
        assert (rest["listeners"], rest["open"], rest["accepted"]) == (1, 1, 0)
        fabric.registry.register("Again", service.id)
        again = {one["name"]: one for one in host_call(fabric, "status")["services"]}["Again"]
        assert (again["listeners"], again["open"], again["accepted"]) == (1, 1, 1)
    with pytest.raises(ConnectionRefusedError):
        hvsock.create_connection(("parent", str(ServiceId.new())), 5, partition=guest.folder)
    assert host_call(fabric, "status")["services"][-1]["refused"] == {"not-registered": 1}
