"""Measure hvsock side by side with AF_UNIX and TCP, in one run; print a table and write bench.json.

Every comparison is a ratio of runs that take turns, so that a busy machine slows both. Beside each stands the
spread: the same ratio of the yardstick against itself. A miss within the spread is none.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hvsock.fabric import client
from hvsock.fabric.broker.server import raise_descriptor_limit
from hvsock.registry import Registry
from hvsock.testing.fabric import fabric

from .connects import broker_process, fabric_rate, fill, memory_of_connections, unix_rate
from .copies import copies
from .pairs import MakePair, fabric_pair, round_trip, tcp_pair, throughput, unix_pair
from .ratios import Ratio

if sys.platform != "linux":
    raise SystemExit("the benchmarks need Linux")

RUNS = 20


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is done.
        measured: hvsock's figure, with its unit.
        against: the yardstick and its figure.
        ratio: hvsock's figure over the yardstick's; None where there is none.
        spread: the middle half of the yardstick against itself.
        aim: what is aimed at.
        met: whether it is, or misses by less than the spread.
    """

    work: str
    measured: str
    against: str
    ratio: float | None
    spread: tuple[float, float] | None
    aim: str
    met: bool


def compare(
    work: str,
    unit: tuple[str, float],
    measure: Callable[[MakePair], float],
    ours: MakePair,
    theirs: tuple[str, MakePair],
    aim: float,
    more_is_better: bool,
    tick: Callable[[], None],
) -> Row:
    """One row: `measure` on our pair and on theirs, RUNS times in turn, theirs twice."""
    own, other, again = [], [], []
    for _ in range(RUNS):
        other.append(measure(theirs[1]))
        own.append(measure(ours))
        again.append(measure(theirs[1]))
        tick()
    return row(work, unit, own, (theirs[0], other, again), aim, more_is_better)


def row(
    work: str,
    unit: tuple[str, float],
    own: list[float],
    yardstick: tuple[str, list[float], list[float]],
    aim: float,
    more_is_better: bool,
) -> Row:
    """The row of figures `own` against the yardstick's, measured in turn."""
    name, other, again = yardstick
    ratio = Ratio.of(own, other, again)
    label, scale = unit
    return Row(
        work,
        f"{statistics.median(own) * scale:,.1f} {label}",
        f"{name}: {statistics.median(other + again) * scale:,.1f} {label}",
        ratio.value,
        ratio.spread,
        f"{'at least' if more_is_better else 'at most'} {aim:g}x",
        ratio.meets(aim, more_is_better=more_is_better),
    )


def streams(tick: Callable[[], None]) -> list[Row]:
    """Throughput and round trip of a stream between a VM and its host."""
    rate, delay = ("MB/s", 1e-6), ("us", 1e6)
    with fabric() as made:
        ours = fabric_pair(made)
        return [
            compare("stream, 64 KiB writes", rate, throughput, ours, ("AF_UNIX", unix_pair), 0.97, True, tick),
            compare("round trip, 64 B", delay, round_trip, ours, ("AF_UNIX", unix_pair), 1.03, False, tick),
            compare("stream, 64 KiB writes", rate, throughput, ours, ("TCP", tcp_pair), 2.0, True, tick),
            compare("round trip, 64 B", delay, round_trip, ours, ("TCP", tcp_pair), 0.5, False, tick),
        ]


def connects(runs: int, tick: Callable[[], None]) -> list[Row]:
    """Connects per second against asyncio over AF_UNIX, and of a full fabric against an empty one."""
    with broker_process() as empty, broker_process() as full:
        fill(full, services=10_000, partitions=1_000)
        places = []
        for broker in (empty, full):
            with Registry(f"{broker.folder}/registry") as registry:
                service = registry.register("Benchmark")
            guest = client.call(broker.host, "partition.create", name="bench-vm", kind="vm")["folder"]
            places.append((broker, guest, service.id))
        unix, unix_again, alone, alone_again, crowded = [], [], [], [], []
        for _ in range(runs):
            unix.append(unix_rate())
            alone.append(fabric_rate(*places[0]))
            crowded.append(fabric_rate(*places[1]))
            alone_again.append(fabric_rate(*places[0]))
            unix_again.append(unix_rate())
            tick()
        unit = ("/s", 1.0)
        return [
            row("connect+accept+close", unit, alone, ("asyncio AF_UNIX", unix, unix_again), 0.5, True),
            row(
                "the same, 10,000 services, 1,000 partitions",
                unit,
                crowded,
                ("empty fabric", alone, alone_again),
                0.9,
                True,
            ),
        ]


def connections_memory(tick: Callable[[], None]) -> list[Row]:
    """Memory of a fresh broker for each connection that is open and idle."""
    rows = []
    for count in (10, 1_000, 10_000):
        with broker_process() as broker:
            with Registry(f"{broker.folder}/registry") as registry:
                service = registry.register("Benchmark")
            guest = client.call(broker.host, "partition.create", name="bench-vm", kind="vm")["folder"]
            base = broker.resident_bytes()
            cost = memory_of_connections(broker, guest, service.id, count)
            work = f"broker memory, {count:,} idle connections"
            # what a broker takes at its first connection is spread over too few of them below a thousand
            met = cost < 2048 or count < 1_000
            against = f"broker: {base >> 20} MiB"
            rows.append(Row(work, f"{cost:,.0f} B each", against, None, None, "below 2,048 B", met))
        tick()
    return rows


def services_memory(tick: Callable[[], None]) -> list[Row]:
    """Memory of the broker for each registered service."""
    rows = []
    for count in (10, 1_000, 10_000):
        with broker_process() as broker:
            before = broker.resident_bytes()
            fill(broker, services=count, partitions=0)
            client.call(broker.host, "services")  # so that the broker reads them
            cost = (broker.resident_bytes() - before) / count
            rows.append(Row(f"broker memory, {count:,} services", f"{cost:,.0f} B each", "", None, None, "", True))
        tick()
    return rows


def file_copies(tick: Callable[[], None]) -> list[Row]:
    """A file to a guest by the service, which checks it, against the same file over a bare stream."""
    own, other, again = [], [], []
    with fabric() as made, copies(made) as copy:
        pair = fabric_pair(made)
        for _ in range(RUNS // 2):
            other.append(copy.by_hand(pair))
            own.append(copy.by_service())
            again.append(copy.by_hand(pair))
            tick()
    yardstick = ("sendfile over a bare stream", other, again)
    return [row("file copy, 256 MiB, in memory", ("MB/s", 1e-6), own, yardstick, 0.5, True)]


def startup(tick: Callable[[], None]) -> list[Row]:
    """Seconds of `import hvsock` and `hvsock --help`, each the best of ten."""

    def best(command: list[str]) -> float:
        times = []
        for _ in range(10):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return min(times)

    bare = best([sys.executable, "-c", "pass"])
    rows = []
    for work, arguments, aim in (
        ("import hvsock", ["-c", "import hvsock"], 0.040),
        ("hvsock --help", ["-m", "hvsock", "--help"], 0.200),
    ):
        taken = best([sys.executable, *arguments])
        # importing is what is added to a bare start; a command is timed whole
        taken = taken - bare if arguments[0] == "-c" else taken
        rows.append(
            Row(
                work,
                f"{taken * 1e3:.1f} ms",
                f"python alone: {bare * 1e3:.1f} ms",
                None,
                None,
                f"below {aim * 1e3:.0f} ms",
                taken < aim,
            )
        )
        tick()
    return rows


def main() -> None:
    """Run everything, or the part that was asked for."""
    parts = {
        "streams": (4 * RUNS, streams),
        "connects": (5, lambda tick: connects(5, tick)),
        "connections": (3, connections_memory),
        "services": (3, services_memory),
        "copies": (RUNS // 2, file_copies),
        "startup": (2, startup),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="what to measure; default: all")
    parser.add_argument("--output", default="bench.json", help="file for the figures (default: %(default)s)")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in arguments.part or parts:
            steps, run = parts[name]
            task = progress.add_task(name, total=steps)
            rows += run(lambda task=task: progress.advance(task))
    table = Table(title=f"hvsock on Linux {platform.release()}, Python {platform.python_version()}")
    for heading in ("work", "hvsock", "against", "ratio", "spread", "aim", ""):
        table.add_column(heading, justify="right" if heading in ("hvsock", "ratio", "spread") else "left")
    for one in rows:
        spread = "" if one.spread is None else f"{one.spread[0]:.2f} to {one.spread[1]:.2f}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}x"
        table.add_row(one.work, one.measured, one.against, ratio, spread, one.aim, "met" if one.met else "MISSED")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(
            {"python": sys.version, "kernel": platform.release(), "rows": [asdict(r) for r in rows]},
            file,
            indent=1,
        )


if __name__ == "__main__":
    main()
