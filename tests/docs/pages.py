"""The examples of the README and the docs: how they are found, run and compared.

Blocks of ``python`` of one page run one after the other, in one namespace. Blocks of ``console`` run in one shell
for each page: a line that starts with ``$`` is a command, the lines below it are its output, as doctest compares
it with ELLIPSIS and NORMALIZE_WHITESPACE. GUIDs, times, process ids and counts of programs differ from run to
run; any will do for the ones shown. A comment above a block says more: ``<!-- file: NAME -->``, it is a file in
the shell's folder; ``<!-- run in a VM -->``, it needs one; ``<!-- not run: REASON -->``, nobody does.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

assert sys.platform == "linux"

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
IN_A_VM: Final = "run in a VM"
FILE: Final = "file: "

_REMARK = r"<!-- ((?:not run: |file: |run in a VM)[^>]*?) -->\s*"
_BLOCK = re.compile(rf"(?:{_REMARK})?^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VARIABLE = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "GUID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?"), "TIME"),
    (re.compile(r"-?\b\d+(\.\d+)? (ms|us|µs|s|MB/s|GB/s)\b"), "MEASURE"),
    (re.compile(r"process \d+|pid \d+"), "PROCESS"),
    (re.compile(r"\b\d+ programs"), "PROGRAMS"),
]


class Block(NamedTuple):
    """One of a page.

    Attributes:
        remark: what the comment above it says, if any.
        language: python or console.
    """

    remark: str
    language: str
    body: str


def _blocks(page: Path) -> list[Block]:
    return [Block(*one) for one in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def blocks(page: Path, language: str, *remarks: str) -> list[str]:
    """The bodies of a page's blocks in that language, of those with no comment above them or one of `remarks`."""
    return [one.body for one in _blocks(page) if one.language == language and one.remark in {"", *remarks}]


def remarks(page: Path) -> set[str]:
    """What the comments above a page's blocks say."""
    return {one.remark for one in _blocks(page)}


def write_files(page: Path, folder: Path) -> None:
    """The files of a page."""
    for one in _blocks(page):
        if one.remark.startswith(FILE):
            (folder / one.remark.removeprefix(FILE)).write_text(one.body, encoding="utf-8")


class Shell:
    """One bash for the commands of a page, in a process group of its own.

    Args:
        folder: where it begins.
        environment: of the fabric that it is for.
    """

    _MARK = "--- end of the output"

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        environ = {
            **environment,
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}:/usr/sbin:/sbin",  # mkfs.ext4
            "COLUMNS": "110",
            "LC_ALL": "C.UTF-8",
        }
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environ,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """What `command` prints, on standard output and standard error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        # the shell's own input is the next commands, which is not for this one to read
        self.process.stdin.write(f"{{ {command}\n}} </dev/null\necho '{self._MARK}'\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.rstrip("\n").endswith(self._MARK):
                return "".join(lines) + line.rstrip("\n").removesuffix(self._MARK)
            lines.append(line)
        raise AssertionError(f"the shell ended in {command!r}: {''.join(lines)}")

    def close(self) -> None:
        """End the shell and whatever it started, but for VMs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.stdin.close()
            self.process.stdout.read()
        finally:
            self.process.stdout.close()
            os.killpg(self.process.pid, signal.SIGKILL) if self.process.poll() is None else None
            self.process.wait()


def _commands(body: str) -> Iterator[tuple[str, str]]:
    """The commands of a block with the output shown below each."""
    command: str | None = None
    output: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, "\n".join(output)
            command, output = line[2:], []
        elif line.startswith("> ") and command is not None and not output:
            command += "\n" + line[2:]
        else:
            output.append(line)
    if command is not None:
        yield command, "\n".join(output)


def _comparable(text: str) -> str:
    for pattern, word in _VARIABLE:
        text = pattern.sub(word, text)
    return text + "\n"


def check(shell: Shell, body: str) -> None:
    """Run the commands of a block of ``console``; each prints what is shown below it."""
    checker = doctest.OutputChecker()
    for command, shown in _commands(body):
        printed = shell.run(command)
        expected, got = _comparable(shown), _comparable(printed)
        same = expected.strip() == got.strip() or checker.check_output(expected, got, FLAGS)
        assert same, f"$ {command}\nshown:\n{shown}\nprinted:\n{printed}"
