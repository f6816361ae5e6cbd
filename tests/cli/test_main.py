"""The command as a whole: help, laziness, errors, completion."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.main import COMMANDS, cli
from hvsock.cli.outcome import ExitCode, say
from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from tests.cli.helpers import PROGRAM, hvsock, invoke


def entries() -> list[tuple[LazyGroup, str, Entry]]:
    """Every command behind a table, of groups too."""
    found: list[tuple[LazyGroup, str, Entry]] = []
    groups: list[LazyGroup] = [cli]
    while groups:
        group = groups.pop()
        for name, entry in group.table.items():
            found.append((group, name, entry))
            command = group.get_command(click.Context(group), name)
            if isinstance(command, LazyGroup):
                groups.append(command)
    return found


@pytest.mark.parametrize(
    ("group", "name", "entry"), entries(), ids=lambda one: one if isinstance(one, str) else ""
)
def test_every_command_of_a_table_is_there_under_its_name(group: LazyGroup, name: str, entry: Entry) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert len(entry.help) < 70


def test_help_lists_every_command_and_the_exit_codes() -> None:
    text = invoke("--help").stdout
    for name, entry in COMMANDS.items():
        assert f"  {name}" in text
        assert entry.help in text
    for code in ExitCode:
        assert str(int(code)) in text
    assert "HVSOCK_DIR" in text
    assert "HVSOCK_PARTITION" in text


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    assert f"Usage: hvsock {name}" in invoke(name, "-h").stdout


def test_what_is_quick_imports_nothing_that_is_slow() -> None:
    commands = [["--help"], ["service", "--help"], ["guid"], ["--version"]]
    code = (
        "import sys; from hvsock.cli.main import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['hvsock', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "slow = {'rich', 'sqlite3', 'asyncio', 'pyperclip', 'subprocess'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=30)


def test_without_arguments_it_shows_its_help_and_fails() -> None:
    done = hvsock(code=2)
    assert done.stdout == b""
    assert b"Commands:" in done.stderr


def test_python_m_hvsock_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hvsock", "--version"], capture_output=True, check=True, timeout=30
    )
    assert done.stdout.startswith(b"hvsock ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonesuch"],
        ["--nonesuch"],
        ["service", "register"],
        ["service", "register", "a", "--port", "-1"],
        ["service", "register", "a", "--port", "1", "--id", "{}"],
        ["service", "access", "a", "--bind", "somebody"],
        ["service", "access", "a", "--bind", "user:no such user"],
        ["service", "export", "--format", "xml"],
        ["partition", "create", "a", "--kind", "host"],
        ["run", "--", "true"],
        ["run", "--partition", "host"],
        ["listen", "any"],
        ["listen", "any", "1", "--echo", "--exec", "true"],
        ["connect", "parent", "1", "--echo", "--progress"],
        ["connect", "parent", "1", "--timeout", "0"],
        ["doctor", "host"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], hvsock_fabric: EmbeddedFabric) -> None:
    result = invoke(*arguments, code=2)
    assert result.stdout == ""
    assert "--help)" in result.stderr


def test_an_error_is_one_line_whatever_is_in_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    say("one\ntwo\t\x1b[31mred\u202e")
    assert capfd.readouterr().err == "hvsock: one two \\x1b[31mred\\u202e\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["doctor", "host", "loopback", "1"],
        ["service", "list"],
        ["service", "enable", "a"],
        ["service", "export"],
        ["partition", "list"],
        ["partition", "create", "a"],
        ["listen", "any", "1"],
        ["connect", "loopback", "1"],
        ["connect", "loopback", "a name"],
    ],
)
def test_without_a_fabric_the_exit_code_is_3(arguments: list[str], tmp_path: Path) -> None:
    result = invoke(*arguments, code=3, env={"HVSOCK_DIR": str(tmp_path / "none"), "HVSOCK_PARTITION": None})
    assert "hvsock up" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "none").exists()


def test_nobody_reads_the_output(hvsock_fabric: EmbeddedFabric) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [PROGRAM, "service", "list"], stdout=writer, stderr=subprocess.PIPE, timeout=30, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_standard_descriptors_do_no_harm(hvsock_fabric: EmbeddedFabric) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" service register "With nothing open" <&- >&- 2>&-', PROGRAM], timeout=30, check=False
    )
    assert done.returncode == 0
    assert hvsock_fabric.registry.find("With nothing open")


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_command(shell: str) -> None:
    text = invoke("completion", shell).stdout
    assert "_HVSOCK_COMPLETE" in text
    assert f"{shell}_complete" in text


def completions(*words: str) -> list[str]:
    """What the command offers for the last of `words`."""
    env = {
        "_HVSOCK_COMPLETE": "fish_complete",
        "COMP_WORDS": " ".join(["hvsock", *words]),
        "COMP_CWORD": words[-1],
    }
    lines = invoke(env=env).stdout.splitlines()
    return [line.partition(",")[2].partition("\t")[0] for line in lines if line]


def test_completion_of_commands_and_options() -> None:
    assert completions("pa") == ["partition"]
    assert completions("service", "un") == ["unregister"]
    assert completions("service", "register", "--po") == ["--port", "--port-alias"]
    assert "ps1" in completions("service", "export", "--format", "p")


@pytest.mark.soak
def test_completion_of_names(hvsock_fabric: EmbeddedFabric) -> None:
    hvsock_fabric.register("Gr\u00fc\u00dfe aus 2761")
    hvsock_fabric.create_partition("web01")
    assert completions("service", "show", "gr") == ["Gr\u00fc\u00dfe aus 2761"]
    assert completions("connect", "parent", "GR") == ["Gr\u00fc\u00dfe aus 2761"]
    assert completions("partition", "remove", "w") == ["web01"]
    assert completions("listen", "pa") == ["parent"]
    assert completions("connect", "web") == ["web01"]
    assert completions("run", "--partition", "h") == ["host"]


def test_completion_of_names_without_a_fabric_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "none"))
    assert completions("service", "show", "x") == []
    assert completions("partition", "remove", "x") == []


def test_bash_puts_names_with_blanks_into_the_line_escaped(hvsock_fabric: EmbeddedFabric) -> None:
    hvsock_fabric.register("HV Socket Demo")
    script = (
        'source <("$0" completion bash); COMP_WORDS=(hvsock service show "HV\\\\ So"); COMP_CWORD=3; '
        '_hvsock_completion "$0"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, PROGRAM], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"HV\\ Socket\\ Demo\n"


def test_import_of_the_command_has_no_side_effects() -> None:
    assert importlib.import_module("hvsock.cli.main").main
