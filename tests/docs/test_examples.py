"""The examples in the README and the docs run, and print what is shown."""

from __future__ import annotations

import doctest
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.testing.fabric import EmbeddedFabric

assert sys.platform == "linux"

from tests.docs.pages import FLAGS, IN_A_VM, PAGES, ROOT, Shell, blocks, check, remarks, write_files
from tests.vm.support import needs_qemu

_FIRST = ("README.md", "tutorial.md", "howto.md", "inventory.md")
"""The pages that newcomers read; the consoles of the others are left to `make docs` and the soak."""


def _pages(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", _pages("python"), ids=_name)
def test_python_examples(page: Path, hvsock_fabric: EmbeddedFabric) -> None:
    """Every python block of the page runs; its own asserts and doctest prompts hold."""
    namespace: dict[str, object] = {"__name__": "__example__"}
    for number, body in enumerate(blocks(page, "python"), 1):
        if body.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(body, namespace, f"{_name(page)} block {number}", None, 0)
            assert doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test).failed == 0
            namespace.update(test.globs)
        else:
            exec(compile(body, f"{_name(page)} block {number}", "exec", dont_inherit=True), namespace)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in an empty folder, for a fabric of its own."""
    environment = {**os.environ, "HVSOCK_DIR": str(tmp_path / "fabric")}
    environment.pop("HVSOCK_PARTITION", None)
    made = Shell(tmp_path, environment)
    yield made
    made.close()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=_name(page), marks=[] if page.name in _FIRST else [pytest.mark.soak])
        for page in _pages("console")
    ],
)
def test_console_examples(page: Path, shell: Shell, tmp_path: Path) -> None:
    """Every command of the page prints what is shown below it."""
    write_files(page, tmp_path)
    for body in blocks(page, "console"):
        check(shell, body)


@pytest.mark.soak
@pytest.mark.timeout(600)
@needs_qemu
@pytest.mark.parametrize("page", [page for page in PAGES if IN_A_VM in remarks(page)], ids=_name)
def test_console_examples_with_a_vm(page: Path, shell: Shell, tmp_path: Path) -> None:
    """The same with the blocks that need one, which the page starts."""
    write_files(page, tmp_path)
    try:
        for body in blocks(page, "console", IN_A_VM):
            check(shell, body)
    finally:
        for vm in json.loads(shell.run("hvsock vm list --json")):
            shell.run(f"hvsock vm rm --force {vm['name']}")


def test_the_examples_are_found() -> None:
    """The README has both kinds of examples, so a change of its layout cannot switch them off."""
    assert blocks(ROOT / "README.md", "console")
    assert blocks(ROOT / "README.md", "python")
