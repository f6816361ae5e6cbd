"""Measure hvsock's vsock device side by side with others, in one run; print tables and write bench-vm.json.

``driver`` drives both vsock devices by a native program that plays QEMU and a guest's driver, so the device is the
limit. ``guest`` measures in real guests under QEMU: both devices, QEMU's user-mode network and virtio-serial.

Measurements of all ways take turns. A ratio is hvsock's rate over the other's; beside it stands the spread: the
same ratio of the other against itself. A miss within the spread is none. Processor time is that of the device's
process. The limiting side is who runs, or waits for a processor, most of the time.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hvsock.errors import HvsockError
from hvsock.vm.userland import KERNELS

from .fakes import fakes
from .guests import guests
from .measuring import Measured, Row, compare, report
from .programs import CRATE, CRATE_VERSION, vhost_device
from .subjects import WORKS, Subject, Work

if sys.platform != "linux":
    raise SystemExit("the benchmarks need Linux")

FULL: Final = (9, 0.5)
QUICK: Final = (3, 0.12)
"""Runs, and seconds of each measurement."""
DEFAULT_KERNEL: Final = "6.1"
"""Of the guests: newer kernels send more than 32 KiB at once in pieces, which vhost-device-vsock 0.3.0 drops."""
TABLE_WIDTH: Final = 190
"""Columns of the table where it is not for a terminal."""


def figure(found: Measured) -> str:
    """What was measured, as the table shows it."""
    if found.failure:
        return "failed"
    if found.work.is_stream:
        return f"{found.rate / 1e6:,.1f} MB/s"
    if found.work.order == "echo":
        return f"{1e6 / found.rate:,.0f} us"
    return f"{found.rate:,.0f} /s"


def cost(found: Measured) -> str:
    """The device's processor time."""
    if found.failure:
        return ""
    return f"{found.cost:.2f} s/GiB" if found.work.is_stream else f"{found.cost * 1e3:,.0f} us each"


def table(title: str, rows: Sequence[Row]) -> Table:
    """The table of one setting."""
    made = Table(title=title)
    for heading in ("work", "hvsock", "against", "ratio", "spread", "processor time", "ratio", "limited by", ""):
        made.add_column(heading, justify="right" if heading in ("hvsock", "ratio", "spread") else "left")
    for row in rows:
        ours, theirs = row.ours, row.theirs
        ratio = spread = limits = processor = cost_ratio = ""
        if row.ratio is not None:
            ratio = f"{row.ratio.value:.2f}x"
            spread = f"{row.ratio.spread[0]:.2f} to {row.ratio.spread[1]:.2f}"
            limits = f"{ours.limit}; {theirs.limit}"
        if row.cost_ratio is not None:
            processor = f"{cost(ours)}, {cost(theirs)}"
            cost_ratio = f"{row.cost_ratio.value:.2f}x"
        against = f"{theirs.subject.name}: {figure(theirs)}"
        word = "" if row.met and row.cost_met else "MISSED" if not row.met else "TIME MISSED"
        made.add_row(ours.work.name, figure(ours), against, ratio, spread, processor, cost_ratio, limits, word)
    return made


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table, and why something failed."""
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table(title, rows))
    for row in rows:
        for one in (row.ours, row.theirs):
            if one.failure:
                console.print(f"{one.subject.name}, {one.work.name}: {one.failure}")


def run(title: str, works: Sequence[Work], subjects: Sequence[Subject], runs: int, seconds: float) -> list[Row]:
    """All works of one setting; the table is printed."""
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=len(works) * runs)
        for work in works:
            progress.update(task, description=work.name)
            rows += compare(work, subjects, runs, seconds, tick=partial(progress.advance, task))
    show(title, rows)
    return rows


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=["driver", "guest", []], help="default: both")
    parser.add_argument("--quick", action="store_true", help="a look, in less than two minutes")
    parser.add_argument("--poll", action="store_true", help="the native driver polls, and does not sleep")
    parser.add_argument("--work", help="only works with this in their names")
    parser.add_argument("--kernel", choices=KERNELS, default=DEFAULT_KERNEL, help="default: %(default)s")
    parser.add_argument("--accel", choices=["auto", "kvm", "tcg"], default="auto", help="default: %(default)s")
    parser.add_argument("--vhost-device", metavar="PATH", help=f"a {CRATE} of one's own, else {CRATE_VERSION}")
    parser.add_argument("--output", default="bench-vm.json", help="file for the figures (default: %(default)s)")
    arguments = parser.parse_args()
    runs, seconds = QUICK if arguments.quick else FULL
    works = [work for work in WORKS if arguments.work is None or arguments.work in work.name]
    written: list[dict[str, Any]] = []
    failure = ""
    try:
        program = vhost_device(arguments.vhost_device)
        if "driver" in (arguments.part or ["driver"]):
            driver = f"native driver that {'polls' if arguments.poll else 'sleeps'}"
            with fakes(program, polls=arguments.poll) as subjects:
                rows = run(f"Without a guest: a {driver}", works, subjects, runs, seconds)
            written += report(rows, {"setting": "driver", "accelerator": None, "driver": driver})
        if "guest" in (arguments.part or ["guest"]):
            with guests(program, arguments.kernel, arguments.accel) as (accelerator, subjects):
                title = f"In guests: QEMU with {accelerator}, Linux {arguments.kernel}"
                rows = run(title, works, subjects, runs, seconds)
            written += report(rows, {"setting": "guest", "accelerator": accelerator, "kernel": arguments.kernel})
    except HvsockError as error:
        failure = f"bench-vm: {error}"
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump({"python": sys.version, "kernel": platform.release(), "rows": written}, file, indent=1)
    if failure:
        raise SystemExit(failure)


if __name__ == "__main__":
    main()
