"""Counters that outlive the broker, to the last one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.errors import StateError
from hvsock.fabric.broker import counters as module
from hvsock.fabric.broker.counters import COLUMNS, RESETS, ROW_COUNTERS, Counters
from hvsock.testing.leaks import leak_check
from hvsock.topology.refusals import Reason

SERVICE = ServiceId.new()


def test_every_reason_has_a_column_of_its_own() -> None:
    assert set(COLUMNS) == set(Reason)
    assert len(set(COLUMNS.values())) == len(COLUMNS)
    assert min(COLUMNS.values()) > 2
    assert max(COLUMNS.values()) < ROW_COUNTERS
    assert set(COLUMNS) > RESETS


def test_columns_keep_their_meaning() -> None:
    """Files of earlier versions are read: add to this, and change nothing."""
    assert {reason.name: column for reason, column in COLUMNS.items()} == {
        "NOT_A_DESTINATION": 4,
        "UNREACHABLE": 5,
        "NOT_BINDABLE": 6,
        "NOT_REGISTERED": 7,
        "DENIED": 8,
        "DISABLED": 9,
        "NO_LISTENER": 10,
        "WRONG_TYPE": 11,
        "IN_USE": 12,
        "BACKLOG_FULL": 13,
        "CANCELLED": 14,
        "LISTENER_GONE": 15,
        "LIMIT": 16,
        "BAD_REQUEST": 17,
        "NO_PORT": 18,
    }


def test_what_is_counted_is_reported_by_reason(tmp_path: Path) -> None:
    counters = Counters(str(tmp_path / "counters"))
    row = counters.row_of(SERVICE)
    counters.accepted(row, 0.001)
    counters.accepted(row, 0.003)
    for reason in (Reason.DENIED, Reason.DENIED, Reason.NO_LISTENER, Reason.CANCELLED):
        counters.ended(row, reason)
    expected = {
        "accepted": 2,
        "refused": {"denied": 2, "no-listener": 1},
        "reset": {"cancelled": 1},
        "connect_microseconds_mean": 2000.0,
        "connect_microseconds_max": 3000,
    }
    assert counters.report(SERVICE) == expected
    nothing = counters.report(ServiceId.new())
    assert nothing["accepted"] == 0
    assert nothing == counters.report(SERVICE_WILDCARD)
    counters.close()
    counters.close()
    again = Counters(str(tmp_path / "counters"))
    assert again.report(SERVICE) == expected
    again.close()


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, *Reason])), max_size=50))
def test_nothing_is_lost_or_mixed_up_over_restarts(acts: list[tuple[int, Reason | None]]) -> None:
    services = [ServiceId.from_port(port) for port in range(6)]
    path = f"/proc/self/fd/{os.memfd_create('counters')}"
    try:
        for index, reason in acts:
            counters = Counters(path)
            row = counters.row_of(services[index])
            if reason is None:
                counters.accepted(row, 0.5)
            else:
                counters.ended(row, reason)
            counters.close()
        counters = Counters(path)
        for index, service in enumerate(services):
            report = counters.report(service)
            mine = [reason for at, reason in acts if at == index]
            assert report["accepted"] == mine.count(None)
            ended = {**report["refused"], **report["reset"]}
            assert ended == {reason.value: mine.count(reason) for reason in mine if reason is not None}
        counters.close()
    finally:
        os.close(int(path.rsplit("/", 1)[1]))


def test_a_count_starts_again_after_the_largest_number(tmp_path: Path) -> None:
    counters = Counters(str(tmp_path / "counters"))
    row = counters.row_of(SERVICE)
    counters._cells[module._cell(row, COLUMNS[Reason.DENIED])] = (1 << 64) - 1
    counters.ended(row, Reason.DENIED)
    assert counters.report(SERVICE)["refused"] == {}
    counters.close()


def test_when_all_rows_are_taken_the_rest_shares_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    counters = Counters(str(tmp_path / "counters"))
    rows = [counters.row_of(ServiceId.from_port(port)) for port in range(5)]
    assert rows == [1, 2, 0, 0, 0]
    assert counters.row_of(SERVICE_WILDCARD) == 0
    counters.close()


def test_without_space_for_a_row_services_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters(str(tmp_path / "counters"))

    def full(*anything: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert counters.row_of(SERVICE) == 0
        with leak_check(), pytest.raises(OSError, match="No space"):
            Counters(str(tmp_path / "others"))
    assert "No space left" in caplog.text
    assert counters.row_of(SERVICE) == 1
    counters.close()


@pytest.mark.parametrize("spoil", ["foreign", "short", "rows"])
def test_a_file_that_is_not_ours_is_left_alone(spoil: str, tmp_path: Path) -> None:
    path = tmp_path / "counters"
    Counters(str(path)).close()
    with open(path, "r+b") as file:
        if spoil == "foreign":
            file.write(b"something")
        elif spoil == "short":
            file.truncate(1000)
        else:
            file.seek(8)
            file.write((module.MAX_ROWS + 1).to_bytes(8, sys.byteorder))
    before = path.read_bytes()
    with pytest.raises(StateError, match="remove it to count from zero"):
        Counters(str(path))
    assert path.read_bytes() == before


def test_a_process_that_is_killed_leaves_no_count_half_written(tmp_path: Path) -> None:
    """Counts that pass 255 to 256 again and again; a kill in between must leave one or the other."""
    path = str(tmp_path / "counters")
    counters = Counters(path)
    row = counters.row_of(SERVICE)
    cell = module._cell(row, COLUMNS[Reason.DENIED])
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    counters._cells[cell] = 0xFFFF
                    counters.ended(row, Reason.DENIED)
            finally:
                os._exit(1)
        while counters._cells[cell] == 0:
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert counters._cells[cell] in (0xFFFF, 0x10000)
    counters.close()
