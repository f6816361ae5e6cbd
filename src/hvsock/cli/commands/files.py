"""`hvsock service export` and `import`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from hvsock.cli.names import complete_partitions, open_registry, vm_id_of
from hvsock.cli.outcome import say
from hvsock.cli.output import json_option, print_json
from hvsock.errors import UsageError

STANDARD: Final = "-"
"""The file name that means standard input or output."""
MAX_IMPORT_BYTES: Final = 65 << 20
"""Most bytes that are read of a file to import: one MiB above what the formats take, so that they say so."""

_FORMATS: Final = ("reg", "ps1", "json", "hcs")


@click.command()
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), help="By default what FILE's ending says, else json."
)
@click.option(
    "--inbox",
    is_flag=True,
    help="With the in-box services (reg, ps1, hcs); Windows has the VM Session Services itself.",
)
@click.option("--vm", metavar="VM", shell_complete=complete_partitions, help="The VM that an HCS document is for.")
@click.argument("file", default=STANDARD, type=click.Path(dir_okay=False, allow_dash=True))
def export(form: str | None, inbox: bool, vm: str | None, file: str) -> None:
    """Write the registry to FILE, or to standard output.

    A .reg file and a PowerShell script register the services on Windows; JSON holds everything. A document for HCS
    (JSON too, by --format hcs) has what is in force for --vm, or for a VM that nothing is said of.
    """
    if vm is not None and form != "hcs":
        raise click.UsageError("--vm is for --format hcs; the other formats hold all VMs")
    if form is None:
        ending = os.path.splitext(file)[1].removeprefix(".").lower()
        form = ending if ending in _FORMATS else "json"
    with open_registry() as registry:
        vm_id = None if vm is None else vm_id_of(vm)
        data = _dump(form, registry.entries(), registry.defaults(), inbox, vm_id)
    if file == STANDARD:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        _write_whole(file, data)


def _dump(form: str, entries: Sequence[Any], defaults: Any, inbox: bool, vm_id: Any) -> bytes:
    if form == "reg":
        from hvsock.registry.formats.regfile import dump_reg

        return dump_reg(entries, inbox=inbox)
    if form == "ps1":
        from hvsock.registry.formats.powershell import dump_powershell

        return dump_powershell(entries, inbox=inbox)
    if form == "hcs":
        if sys.platform == "win32":
            from hvsock.windows.host import NO_ACCESS

            raise UsageError(NO_ACCESS)
        from hvsock.registry.formats.hcs import dump_hcs

        return dump_hcs(entries, defaults, vm_id, inbox=inbox)
    from hvsock.registry.formats.jsonfile import dump_json

    return dump_json(entries, defaults)


def _write_whole(path: str, data: bytes) -> None:
    """Write a file so that nobody sees half of it; what is no plain file is written to as it is."""
    if os.path.lexists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            file.write(data)
        return
    target = os.path.realpath(path)
    fresh = f"{target}.{os.getpid()}.new"
    try:
        with open(fresh, "xb") as file:
            file.write(data)
        os.replace(fresh, target)
    except BaseException:
        if os.path.lexists(fresh):
            os.unlink(fresh)
        raise


@click.command("import")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(("auto", "reg", "json", "hcs")),
    default="auto",
    help="By default what FILE holds.",
)
@click.option("--replace", is_flag=True, help="Let services that are registered take the file's values.")
@click.option(
    "--vm", metavar="VM", shell_complete=complete_partitions, help="The VM that an HCS document is about."
)
@json_option
def import_(file: str, form: str, replace: bool, vm: str | None, as_json: bool) -> None:
    """Register the services in FILE (- for standard input): all of them, or none.

    Services of the registry that FILE does not name stay as they are. A document for HCS says who may bind and
    connect for --vm, and its defaults; without --vm, for all VMs.
    """
    data = _read(file)
    if form == "auto":
        form = _guess(data)
    if vm is not None and form != "hcs":
        raise click.UsageError("--vm is for HCS documents; the other formats hold all VMs")
    notes: Sequence[str] = ()
    with open_registry(make=True) as registry:
        if sys.platform == "win32":
            from hvsock.windows.host import NO_ACCESS, names_of

            if form == "hcs":
                raise UsageError(NO_ACCESS)
            services, _, passed_over = _load(form, data)
            names, left_out = names_of(services)
            notes = [*passed_over, *left_out]
            done = registry.import_entries(names, replace)
        elif form == "hcs":
            from hvsock.registry.formats.hcs import load_hcs

            found = load_hcs(data, for_all=vm is None)
            vm_id = None if vm is None else vm_id_of(vm)
            done = registry.import_of_vm(vm_id, found.defaults, found.services, replace)
        else:
            services, defaults, notes = _load(form, data)
            done = registry.import_entries(services, replace, defaults=defaults)
    for note in notes:
        say(note)
    if as_json:
        print_json(
            {"added": done.added, "changed": done.replaced, "skipped": done.unchanged, "notes": list(notes)}
        )
    else:
        click.echo(f"{done.added} added, {done.replaced} changed, {done.unchanged} skipped")


def _read(path: str) -> bytes:
    if path == STANDARD:
        return sys.stdin.buffer.read(MAX_IMPORT_BYTES)
    with open(path, "rb") as file:
        return file.read(MAX_IMPORT_BYTES)


def _load(form: str, data: bytes) -> tuple[Sequence[Any], Any, Sequence[str]]:
    """The services and defaults in `data`, and what was passed over."""
    if form == "reg":
        from hvsock.registry.formats.regfile import load_reg

        found = load_reg(data)
        return found.services, None, found.notes
    import time

    from hvsock.registry.formats.jsonfile import load_json

    return *load_json(data, now=time.time()), ()


def _guess(data: bytes) -> str:
    """The format of `data` by its first characters.

    Raises:
        UsageError: it is none of ours.
    """
    head = data[:200].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    if head.startswith(b"{"):
        from hvsock.registry.formats.hcs import looks_like_hcs

        return "hcs" if looks_like_hcs(data) else "json"
    if head.startswith((b"Windows Registry Editor", b"REGEDIT4")):
        return "reg"
    raise UsageError("the file is neither a .reg file nor JSON of hvsock or HCS; say which with --format")
