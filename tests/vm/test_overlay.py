"""What a user adds to the default guest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hvsock.errors import StateError, UsageError

assert sys.platform == "linux"

from hvsock.vm.overlay import overlay
from tests.vm.test_cpio import read


def test_a_folder_and_a_command(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    program = tmp_path / "root" / "program"
    program.write_text("#!/bin/sh\n")
    (tmp_path / "root" / "data").write_text("data")
    (tmp_path / "root" / "binary").write_bytes(b"\x7fELF")
    (tmp_path / "root" / "binary").chmod(0o755)
    (tmp_path / "link").symlink_to("root")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    found = read(b"".join(overlay(str(tmp_path), "echo $HOME; exit 3")))
    modes = {name: oct(entry.mode) for name, entry in found.items()}
    assert modes["root/program"] == modes["root/binary"] == "0o100755"
    assert modes["root/data"] == "0o100644"
    assert modes["empty"] == "0o40755"
    assert (modes["link"], found["link"].data) == ("0o120777", b"root")
    assert found["dangling"].data == b"nowhere"
    assert found["etc/hvsock/start"].data == b"#!/bin/sh\necho $HOME; exit 3\n"
    assert modes["etc/hvsock/start"] == "0o100755"


def test_nothing(tmp_path: Path) -> None:
    assert read(b"".join(overlay())) == {}
    assert read(b"".join(overlay(str(tmp_path)))) == {}


def test_what_goes_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        overlay(str(tmp_path / "nonesuch"))
    (tmp_path / "etc" / "hvsock").mkdir(parents=True)
    (tmp_path / "etc" / "hvsock" / "start").touch()
    with pytest.raises(UsageError, match="not both"):
        overlay(str(tmp_path), "echo")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StateError, match="fifo is neither"):
        overlay(str(tmp_path))
