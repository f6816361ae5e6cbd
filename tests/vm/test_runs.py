"""The folder of a VM, what there is to tell of it, and what its supervisor is asked."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.errors import HvsockError, NotFoundError, ProtocolError, StateError, UsageError

assert sys.platform == "linux"

from hvsock.vm import control
from hvsock.vm.qemu import Hardware
from hvsock.vm.runs import Record, Run, Settings, State, all_runs, read_settings, write_json, write_settings

RECORD = Record("web01", "id", 3, State.RUNNING, "tcg", 512, 1, "6.12", 1.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "web01")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "ä", "a" * 64, "a\n"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no VM can be called"):
        Run(str(tmp_path), name)


def test_a_folder_is_taken_by_one_and_emptied(run: Run) -> None:
    lock = run.take()
    Path(run.path("left over")).touch()
    with pytest.raises(StateError, match="runs already"):
        run.take()
    with pytest.raises(StateError, match="stop it first"), run.stopped():
        pass
    assert run.runs()
    assert os.stat(run.folder).st_mode & 0o777 == 0o700
    os.close(lock)
    assert not run.runs()
    os.close(run.take())
    assert os.listdir(run.folder) == ["lock"]
    with run.stopped():
        run.remove()
    assert not os.path.exists(run.folder)
    with pytest.raises(NotFoundError, match="vm list"), run.stopped():
        pass


def test_the_record_of_a_vm_that_runs_and_that_was_killed(run: Run, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        run.record()
    assert list(all_runs(str(tmp_path))) == []
    lock = run.take()
    with pytest.raises(NotFoundError):  # it has none yet
        run.record()
    write_json(run.path("vm.json"), RECORD.to_json())
    assert run.record() == RECORD
    os.close(lock)
    found = run.record()
    assert (found.state, found.reason, found.pid) == (State.STOPPED, "its supervisor was killed", 0)
    (tmp_path / "vms" / "no name").mkdir()
    (tmp_path / "vms" / "empty").mkdir()
    assert [one.name for one in all_runs(str(tmp_path))] == ["web01"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": 1, "novelty": 2}'])
def test_a_damaged_record(run: Run, text: str) -> None:
    os.close(run.take())
    Path(run.path("vm.json")).write_text(text)
    with pytest.raises(NotFoundError):
        run.record()


def test_waiting_for_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = run.take()
    monkeypatch.setattr("hvsock.vm.runs.END_SECONDS", 0.05)
    with pytest.raises(StateError, match="did not end"):
        run.wait_for_end()
    os.close(lock)
    run.wait_for_end()


def test_settings_are_read_as_they_were_written(run: Run) -> None:
    hardware = Hardware(512, 2, "/k", "/i", ("a", "b"), None, ("-x",))
    settings = Settings("web01", "id", 3, "kvm", "/bin/qemu", hardware, ("device", "1"), "up", "6.12")
    os.close(run.take())
    write_settings(run, settings)
    assert read_settings(run.folder) == settings


@contextlib.contextmanager
def answering(run: Run, answer: bytes) -> Iterator[list[bytes]]:
    """Something at the control socket that takes one line and sends `answer`."""
    os.makedirs(run.folder, exist_ok=True)
    taken: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(run.path("control"))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as link, link.makefile("rb") as file:
                taken.append(file.readline())
                link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield taken
        thread.join()
    os.unlink(run.path("control"))


def test_what_a_supervisor_answers(run: Run) -> None:
    with answering(run, json.dumps({"vm": RECORD.to_json()}).encode() + b"\n") as taken:
        assert control.ask(run, "stop", seconds=2.5)["state"] == "running"
    assert json.loads(taken[0]) == {"do": "stop", "seconds": 2.5}


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b'{"error": "StateError", "text": "QEMU refuses"}\n', StateError, "QEMU refuses"),
        (b'{"error": "HvsockError", "text": "hm"}\n', HvsockError, "hm"),
        (b"", StateError, "ended before it answered"),
        (b"nonsense\n", ProtocolError, "no supervisor"),
        (b"[1]\n", ProtocolError, "no supervisor"),
        (b'{"error": "Novelty", "text": "hm"}\n', ProtocolError, "no supervisor"),
        (b'{"error": "annotations", "text": "hm"}\n', ProtocolError, "no supervisor"),
    ],
)
def test_what_goes_wrong(run: Run, answer: bytes, error: type[HvsockError], text: str) -> None:
    with answering(run, answer), pytest.raises(error, match=text) as caught:
        control.ask(run, "status")
    assert type(caught.value) is error


def test_a_supervisor_that_is_silent_or_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="does not run"):
        control.ask(run, "status")
    os.makedirs(run.folder)
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(run.path("control"))
        with pytest.raises(NotFoundError, match="does not run"):  # a left-over
            control.ask(run, "status")
        listener.listen()
        with pytest.raises(StateError, match="did not answer"):
            control.ask(run, "status")
