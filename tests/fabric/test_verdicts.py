"""What the broker remembers never outlives a change: each change counts from the next connect on."""

from __future__ import annotations

import sys
import time

import pytest

import hvsock
from hvsock.fabric.broker.services import SETTLED_NANOSECONDS
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle
from tests.waiting import PATIENCE_SECONDS

assert sys.platform == "linux"

CHANGES = 20
"""How often each change is made and taken back."""


def _connect(guest: PartitionHandle, service_id: str) -> hvsock.socket:
    return hvsock.create_connection(("parent", service_id), PATIENCE_SECONDS, partition=guest.folder)


def _settle() -> None:
    """Let the registry's file get so old that the broker trusts its time alone."""
    time.sleep(2 * SETTLED_NANOSECONDS / 1e9)


def test_disabling_counts_at_once(hvsock_fabric: EmbeddedFabric) -> None:
    """Each of many changes in a row is seen by the very next connect, however close they are."""
    service = hvsock_fabric.register("Greeter")
    guest = hvsock_fabric.create_partition("guest")
    with hvsock.create_server(("children", service.id)) as listener:
        for wait in (True, False):
            for _ in range(CHANGES):
                hvsock_fabric.registry.set_enabled(service.id, False)
                with pytest.raises(ConnectionRefusedError):
                    _connect(guest, service.id)
                hvsock_fabric.registry.set_enabled(service.id, True)
                if wait:
                    _connect(guest, service.id).close()
                    listener.accept()[0].close()
            _settle()
            _connect(guest, service.id).close()
            _connect(guest, service.id).close()
            for _ in range(2):
                listener.accept()[0].close()


def test_a_settled_registry_still_changes(hvsock_fabric: EmbeddedFabric) -> None:
    """A service that is registered long after the last change is there at once."""
    first = hvsock_fabric.register("First")
    guest = hvsock_fabric.create_partition("guest")
    with hvsock.create_server(("children", first.id)) as listener:
        _settle()
        for _ in range(3):
            _connect(guest, first.id).close()
            listener.accept()[0].close()
        second = hvsock_fabric.register("Second")
        with hvsock.create_server(("children", second.id)) as other:
            _connect(guest, second.id).close()
            other.accept()[0].close()
        hvsock_fabric.registry.unregister(first.id)
        with pytest.raises(ConnectionRefusedError):
            _connect(guest, first.id)


def test_a_more_specific_listener_wins_from_its_listen_on(hvsock_fabric: EmbeddedFabric) -> None:
    """A grant that is remembered does not keep connections from a better listener, nor from the one left."""
    service = hvsock_fabric.register("Greeter")
    guest = hvsock_fabric.create_partition("guest")
    with hvsock.create_server(("any", service.id)) as general:
        _connect(guest, service.id).close()
        general.accept()[0].close()
        special = hvsock.socket()
        special.bind((guest.id, service.id))
        _connect(guest, service.id).close()  # bound and not listening: no change
        general.accept()[0].close()
        special.listen()
        _connect(guest, service.id).close()
        special.accept()[0].close()
        special.close()
        _connect(guest, service.id).close()
        general.accept()[0].close()


def test_a_new_parent_of_the_same_name_is_another(hvsock_fabric: EmbeddedFabric) -> None:
    """A partition that is removed takes its grants along."""
    service = hvsock_fabric.register("Greeter")
    with hvsock.create_server(("any", service.id)) as listener:
        for _ in range(3):
            guest = hvsock_fabric.create_partition("guest")
            _connect(guest, service.id).close()
            accepted, peer = listener.accept()
            assert peer.vm_id == guest.id
            accepted.close()
            hvsock_fabric.remove_partition("guest")
            with pytest.raises(OSError, match="no broker"):
                _connect(guest, service.id)


def test_what_died_does_not_listen(hvsock_fabric: EmbeddedFabric) -> None:
    """Waiting for a service, and doctor, are not taken in by a listener whose process is gone."""
    service = hvsock_fabric.register("Greeter")
    guest = hvsock_fabric.create_partition("guest")
    with hvsock.create_server(("any", service.id)):
        hvsock.wait_for_service(("parent", service.id), 5, partition=guest.folder)
    with pytest.raises(TimeoutError):
        hvsock.wait_for_service(("parent", service.id), 0, partition=guest.folder)
