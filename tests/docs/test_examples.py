"""The examples in the README and the docs run, and print what is shown.

Blocks of ``python`` of one file run one after the other, in one namespace. Blocks of ``console`` run in one shell
for each file: a line that starts with ``$`` is a command, the lines below it are its output, as doctest
compares it with ELLIPSIS and NORMALIZE_WHITESPACE. GUIDs, times and process ids differ from run to run; any
will do for the ones shown. A block under ``<!-- not run: REASON -->`` is left out.
"""

from __future__ import annotations

import doctest
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.testing.fabric import EmbeddedFabric

assert sys.platform == "linux"

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\s*)?^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_VARIABLE = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "GUID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?Z?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (ms|us|µs|s|MB/s|GB/s)\b"), "MEASURE"),
    (re.compile(r"process \d+|pid \d+"), "PROCESS"),
]


def _blocks(page: Path, language: str) -> list[str]:
    return [
        body
        for skipped, kind, body in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == language and not skipped
    ]


def _pages(language: str) -> list[Path]:
    return [page for page in PAGES if _blocks(page, language)]


_FIRST = ("README.md", "tutorial.md", "howto.md")
"""The pages that newcomers read; the consoles of the others are left to `make docs` and the soak."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", _pages("python"), ids=_name)
def test_python_examples(page: Path, hvsock_fabric: EmbeddedFabric) -> None:
    """Every python block of the page runs; its own asserts and doctest prompts hold."""
    namespace: dict[str, object] = {"__name__": "__example__"}
    for number, body in enumerate(_blocks(page, "python"), 1):
        if body.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(body, namespace, f"{_name(page)} block {number}", None, 0)
            assert doctest.DocTestRunner(optionflags=_FLAGS, verbose=False).run(test).failed == 0
            namespace.update(test.globs)
        else:
            exec(compile(body, f"{_name(page)} block {number}", "exec", dont_inherit=True), namespace)


class Shell:
    """One bash for the commands of a page, in a process group of its own."""

    _MARK = "--- end of the output"

    def __init__(self, folder: Path) -> None:
        environ = {
            **os.environ,
            "HVSOCK_DIR": str(folder / "fabric"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "110",
            "LC_ALL": "C.UTF-8",
        }
        environ.pop("HVSOCK_PARTITION", None)
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
        self.process.stdin.write(f"{command}\necho '{self._MARK}'\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for line in self.process.stdout:
            if line.rstrip("\n").endswith(self._MARK):
                return "".join(lines) + line.rstrip("\n").removesuffix(self._MARK)
            lines.append(line)
        raise AssertionError(f"the shell ended in {command!r}: {''.join(lines)}")

    def close(self) -> None:
        """End the shell and whatever it started."""
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


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder."""
    made = Shell(tmp_path)
    yield made
    made.close()


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


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=_name(page), marks=[] if page.name in _FIRST else [pytest.mark.soak])
        for page in _pages("console")
    ],
)
def test_console_examples(page: Path, shell: Shell) -> None:
    """Every command of the page prints what is shown below it."""
    checker = doctest.OutputChecker()
    for body in _blocks(page, "console"):
        for command, shown in _commands(body):
            printed = shell.run(command)
            expected, got = _comparable(shown), _comparable(printed)
            same = expected.strip() == got.strip() or checker.check_output(expected, got, _FLAGS)
            assert same, f"$ {command}\nshown:\n{shown}\nprinted:\n{printed}"


def test_the_examples_are_found() -> None:
    """The README has both kinds of examples, so a change of its layout cannot switch them off."""
    assert _blocks(ROOT / "README.md", "console")
    assert _blocks(ROOT / "README.md", "python")
