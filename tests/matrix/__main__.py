"""Runs the conformance suite and the address tests over every transport, and writes docs/matrix.json and .md.

What cannot be run here keeps the outcomes that it had, or stays "not run"; which it is, standard error says.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

if sys.platform != "linux":
    raise SystemExit("the matrix is made on Linux")

from hvsock.errors import HvsockError

from . import guests, local
from .probes import NOT_RUN, PASSED
from .table import FAKE, TRANSPORTS, Transport, empty, problems, rendered, word_of

NOVEL: Final = f"{NOT_RUN}: it is newer than the last run of this transport"
"""The outcome of a check of a transport whose data do not have it."""

DOCS: Final = Path(__file__).parents[2] / "docs"
DATA: Final = DOCS / "matrix.json"
PAGE: Final = DOCS / "matrix.md"
RUNNERS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "fabric": lambda: {"fabric": local.run_fabric()},
    "serve": lambda: {"serve": local.run_serve()},
    "hyperv": lambda: {"hyperv": local.run_hyperv()},
    "guest": guests.run_guest,
    "vhost-device": lambda: {"vhost-device": guests.run_vhost_device()},
}
"""What is run at one go, and gives the columns of one transport or two."""


def marked(transport: Transport, column: dict[str, Any]) -> dict[str, Any]:
    """The same, where a fake's passes are called fake, in the order of the suite."""
    checks = empty(transport)["checks"]
    for name in checks:
        outcome = column["checks"].get(name, NOVEL)
        checks[name] = FAKE if transport.is_fake and word_of(outcome) == PASSED else outcome
    return {"checks": checks, "throughput": column["throughput"]}


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument(
        "part", nargs="*", choices=[*RUNNERS, "page", []], help="default: all; page: only the page"
    )
    arguments = parser.parse_args()
    known = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    by_key = {one.key: one for one in TRANSPORTS}
    for name in arguments.part or RUNNERS:
        if name == "page":
            write(known)
            continue
        started = time.monotonic()
        print(f"{name}:", file=sys.stderr, flush=True)
        try:
            found = RUNNERS[name]()
        except HvsockError as error:
            print(f"{name}: not run: {error}", file=sys.stderr)
            continue
        known |= {key: marked(by_key[key], column) for key, column in found.items()}
        write(known)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)


def write(known: dict[str, Any]) -> None:
    """Write the data and the page; what is not known was not run."""
    data = {one.key: marked(one, {**empty(one), **known.get(one.key, {})}) for one in TRANSPORTS}
    if found := problems(data):
        raise SystemExit("\n".join(found))
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(rendered(data), encoding="utf-8")


if __name__ == "__main__":
    main()
