"""`hvsock vm image`."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from hvsock.cli.outcome import say
from hvsock.cli.output import console_for_errors, json_option, print_json, size_text
from hvsock.vm import image as images
from hvsock.vm.userland import DEFAULT_KERNEL, KERNELS

if sys.platform != "linux":
    raise ImportError("VMs need Linux")


@click.command()
@click.option(
    "--kernel",
    type=click.Choice(tuple(KERNELS)),
    default=DEFAULT_KERNEL,
    show_default=True,
    help="The kernel's series.",
)
@click.option("--output", metavar="FOLDER", help="Put the files kernel and initrd there, for a QEMU of your own.")
@json_option
def image(kernel: str, output: str | None, as_json: bool) -> None:
    """Make the default guest: a cloud kernel of Debian, and an initramfs with busybox, Python and hvsock.

    Its packages are the newest of Debian 12, by apt; root is not needed. What is made is kept in HVSOCK_IMAGES,
    by default below the user's cache folder.
    """
    with image_progress() as progress:
        made = images.ensure(kernel, renew=True, progress=progress)
    facts: dict[str, Any] = made.facts
    if output is not None:
        os.makedirs(output, exist_ok=True)
        facts["output"] = {name: os.path.join(os.path.abspath(output), name) for name in ("kernel", "initrd")}
        shutil.copyfile(made.kernel, facts["output"]["kernel"])
        made.write_initrd(facts["output"]["initrd"])
    if as_json:
        print_json(facts)
        return
    for layer in facts["layers"]:
        what = {**layer.get("packages", {}), **layer.get("python", {})}
        click.echo(
            f"{size_text(layer['bytes'])}: {', '.join(f'{name} {version}' for name, version in what.items())}"
        )
    click.echo(f"kernel {made.series}, {size_text(facts['bytes'])} in all, key {facts['key']}")


@contextlib.contextmanager
def image_progress() -> Iterator[Callable[[str], None]]:
    """Shows on standard error what is done: in one line that moves on a terminal, else in a line for each."""
    if not sys.stderr.isatty():
        yield lambda text: say(f"guest image: {text}")
        return
    with console_for_errors().status("guest image") as status:
        yield lambda text: status.update(f"guest image: {text}")
