"""What an operator does with a real guest by the installed commands; the same as with a local partition."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

assert sys.platform == "linux"

from hvsock.vm.runs import State
from tests.cli.helpers import PROGRAM, invoke
from tests.cli.helpers import hvsock as command
from tests.docs.pages import IN_A_VM, ROOT, Shell, blocks, check, write_files
from tests.support import SOAK
from tests.vm.support import PATIENCE, wait_until
from tests.vm.traffic.world import World

ODD_NAME: Final = "a file, “odd”\n and\\more"
LARGE: Final = os.urandom(1 << 20)


class Operator:
    """Somebody at the host of one guest, called web01, which serves everything.

    Args:
        world: the guest's fabric.
        folder: theirs.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._env = {**world.environment, "PATH": f"{os.path.dirname(PROGRAM)}:{os.environ['PATH']}"}
        self._folder = folder

    def hvsock(self, *words: str, code: int = 0) -> bytes:
        """What a command prints; in this process, which has loaded what it needs."""
        return invoke(*words, code=code, env=self._env).stdout_bytes

    def execute(self, *words: str, code: int = 0, input: bytes = b"") -> bytes:
        """What `hvsock exec` prints, which has a standard input of its own."""
        return command("exec", *words, code=code, input=input, env=self._env, seconds=PATIENCE).stdout

    def exchanges_values(self) -> None:
        """Values both ways, and what the guest says of itself."""
        self.hvsock("kvp", "set", "web01", "role=web", "colour=red and green")
        assert self.hvsock("kvp", "get", "web01", "colour") == b"red and green"
        assert self.hvsock("kvp", "get", "web01", "OSName").startswith(b"Debian")
        if SOAK:  # a command takes an emulated guest ten seconds
            self.execute("web01", "--", "hvsock", "kvp", "set", "loopback", "state=ready")
            assert self.hvsock("kvp", "get", "web01", "state") == b"ready"
        self.hvsock("kvp", "get", "web01", "nothing", code=5)

    def copies_files(self) -> None:
        """A tree with any name, there and back, with its modes."""
        tree = self._folder / "tree"
        (tree / "sub").mkdir(parents=True)
        (tree / "sub" / ODD_NAME).write_bytes(LARGE)
        (tree / "empty").write_bytes(b"")
        (tree / "run").write_bytes(b"#!/bin/sh\necho it runs\n")
        (tree / "run").chmod(0o750)
        self.hvsock("cp", "-r", "--parents", str(tree), "web01:/srv/deep/there")
        assert self.execute("web01", "/srv/deep/there/run") == b"it runs\n"
        if SOAK:
            summed = self.execute("web01", "--", "sha256sum", f"/srv/deep/there/sub/{ODD_NAME}")
            assert hashlib.sha256(LARGE).hexdigest().encode() in summed
        self.hvsock("cp", "-r", "web01:/srv/deep/there", str(self._folder / "back"))
        back = self._folder / "back"
        assert (back / "sub" / ODD_NAME).read_bytes() == LARGE
        assert (back / "empty").read_bytes() == b""
        assert (back / "run").stat().st_mode & 0o777 == 0o750

    def runs_commands(self) -> None:
        """Input, output, errors, exit codes and signals."""
        script = 'read -r word; echo "$A|$word"; pwd; exit 7'
        words = ("web01", "--cwd", "/tmp", "--env", "A=b c", "--", "sh", "-c", script)
        assert self.execute(*words, code=7, input=b"said\n") == b"b c|said\n/tmp\n"
        if not SOAK:
            return  # each takes an emulated guest a second
        self.execute("web01", "--", "sh", "-c", "kill -TERM $$", code=128 + signal.SIGTERM)
        assert self.execute("web01", "cat", input=LARGE) == LARGE

    def uses_openssh(self) -> None:
        """Stock ssh and sftp, by what ssh-config prints; nothing where they are not installed."""
        if shutil.which("ssh") is None or shutil.which("sftp") is None:
            return  # tests/services/predefined/test_direct.py says so, and how to get them
        config = self._folder / "config"
        config.write_bytes(self.hvsock("direct", "ssh-config", "web01"))
        here, back = self._folder / "here", self._folder / "here-again"
        here.write_bytes(LARGE)

        def run(*words: str, input: bytes) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                words, input=input, capture_output=True, env=self._env, timeout=PATIENCE, check=False
            )

        done = run("ssh", "-F", str(config), "web01", "cat; exit 6", input=LARGE)
        assert (done.returncode, done.stdout == LARGE) == (6, True), done.stderr
        if not SOAK:
            return
        words = f"put {here} /tmp/there\nget /tmp/there {back}\n".encode()
        done = run("sftp", "-b", "-", "-F", str(config), "web01", input=words)
        assert (done.returncode, back.read_bytes() == LARGE) == (0, True), done.stderr

    def makes_a_service(self) -> None:
        """What docs/inventory.md does in a VM that is up, as it stands there."""
        page, folder = ROOT / "docs" / "inventory.md", self._folder / "inventory"
        folder.mkdir()
        write_files(page, folder)
        self.hvsock("service", "register", "Inventory", "--port", "2770")
        body = blocks(page, "console", IN_A_VM)[-1]
        shell = Shell(folder, self._env)
        try:
            check(shell, body)
        finally:
            shell.close()

    def shuts_it_down(self) -> None:
        """The answer comes before the act, and the VM ends by itself."""
        run = self._world.guest("web01").run
        assert json.loads(self.hvsock("shutdown", "web01", "--status", "--json"))["phase"] == "idle"
        self.hvsock("shutdown", "web01", "--timeout", "600", "--reason", "a test")
        assert b"(a test)" in self.hvsock("shutdown", "web01", "--status")
        self.hvsock("shutdown", "web01", "--cancel")
        assert run.record().state is State.RUNNING
        assert json.loads(self.hvsock("shutdown", "web01", "--wait", "--json"))["over"] is True
        wait_until(lambda: not run.runs())
        assert run.record().reason == "the guest switched itself off"

    def does_everything(self) -> None:
        """One after the other; at the end the VM is off."""
        self.exchanges_values()
        self.runs_commands()
        self.copies_files()
        self.uses_openssh()
        self.makes_a_service()
        self.shuts_it_down()
