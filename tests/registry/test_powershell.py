"""The registry as a PowerShell script, read back by the rules of PowerShell's strings."""

# ruff: noqa: RUF001 - PowerShell takes typographic quotes for quotes

from __future__ import annotations

import re

from hypothesis import example, given, settings

from hvsock.addresses import ServiceId
from hvsock.registry.entries import ServiceEntry, inbox_entries
from hvsock.registry.formats.powershell import dump_powershell, single_quoted
from tests.registry import strategies

ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
QUOTES = "'‘’‚‛"
"""CharExtensions.IsSingleQuote of PowerShell's tokenizer."""


def read_string(script: str, at: int) -> tuple[str, int]:
    """A string in single quotes as PowerShell's tokenizer reads it: a doubled quote is one; and where it ends."""
    assert script[at] in QUOTES
    at += 1
    text = ""
    while script[at] not in QUOTES or script[at + 1] in QUOTES:
        at += script[at] in QUOTES
        text += script[at]
        at += 1
    return text, at + 1


def registered(script: bytes) -> list[tuple[str, str]]:
    """The id and the name of every service that a script registers."""
    text = script.decode("utf-8-sig")
    found = []
    for line in text[text.index("$services = @(") : text.index("foreach")].split("\r\n")[1:-2]:
        assert line.startswith("    @{ Id = ")
        service_id, at = read_string(line, len("    @{ Id = "))
        assert line[at : at + len("; Name = ")] == "; Name = "
        name, at = read_string(line, at + len("; Name = "))
        assert line[at:] == " }"
        found.append((service_id, name))
    return found


def test_the_script_of_one_service() -> None:
    script = dump_powershell([*inbox_entries(0.0), ServiceEntry(ONE, "it's")])
    assert script.startswith(b"\xef\xbb\xbf#Requires -RunAsAdministrator\r\n")
    text = script.decode("utf-8-sig")
    assert text.count("\n") == text.count("\r\n")
    assert text.split("\r\n")[3:-1] == [
        r"$key = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices'",
        "$services = @(",
        "    @{ Id = '3049197c-9a4e-4fbf-9367-97f792f16994'; Name = 'it''s' }",
        ")",
        "foreach ($service in $services) {",
        "    $path = Join-Path $key $service.Id",
        "    if (-not (Test-Path -LiteralPath $path)) {",
        "        New-Item -Path $key -Name $service.Id | Out-Null",
        "    }",
        "    Set-ItemProperty -LiteralPath $path -Name 'ElementName' -Value $service.Name -Type String",
        "}",
    ]


def test_a_key_that_exists_is_not_made_again() -> None:
    """New-Item -Force would empty a key that is there, so the script looks before it makes one."""
    assert not re.search("-Force", dump_powershell([]).decode("utf-8-sig"))


def test_inbox_services_are_written_on_request() -> None:
    entries = inbox_entries(0.0)
    assert registered(dump_powershell(entries)) == []
    assert registered(dump_powershell(entries, inbox=True)) == [(entry.id, entry.name) for entry in entries]


@settings(max_examples=strategies.EXAMPLES)
@given(strategies.registries)
@example([ServiceEntry(ONE, "'; Remove-Item C:\\ #")])
@example([ServiceEntry(ONE, "’; Remove-Item C:\\ #")])
@example([ServiceEntry(ONE, "a‘b’c‚d‛e'f")])
@example([ServiceEntry(ONE, "$(x) `n {0} @{}")])
def test_names_say_nothing_to_powershell(entries: list[ServiceEntry]) -> None:
    script = dump_powershell(entries)
    assert registered(script) == [(entry.id, entry.name) for entry in entries]


def test_every_quote_is_doubled() -> None:
    assert single_quoted("'‘’‚‛\"") == "'" + "''‘‘’’‚‚‛‛\"" + "'"
