"""The matrix as data, and as a page of the docs (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from .features import ALL_CHECKS, SECTIONS
from .probes import ABSENT, FAILED, NOT_RUN, ONLY_ONE_WAY, PASSED

FAKE: Final = "fake"
"""In place of "pass" where it ran against a fake."""
WORDS: Final = (PASSED, ONLY_ONE_WAY, FAKE, ABSENT, NOT_RUN, FAILED)
"""Every outcome begins with one of these; after a colon stands what came instead, or why it was not run."""
COMMAND: Final = "make matrix"


class Transport(NamedTuple):
    """A column.

    Attributes:
        key: its name in the data.
        title: its heading.
        how: what it was run with, in one sentence.
        is_fake: whether that is a fake.
    """

    key: str
    title: str
    how: str
    is_fake: bool = False


TRANSPORTS: Final = (
    Transport("fabric", "fabric", "partitions of one machine: a VM's and a container's, and their host's"),
    Transport(
        "device",
        "device",
        "hvsock's virtio device: a real guest under QEMU (Linux 6.12, emulated) and its host, either way",
    ),
    Transport(
        "vsock",
        "kernel vsock",
        "the kernel's AF_VSOCK in that guest: loopback, and to its host by the device",
    ),
    Transport(
        "vhost-device",
        "hybrid, vhost-device-vsock",
        "a host with the transport hybrid, the real vhost-device-vsock 0.3.0, a real guest (Linux 6.1, emulated)",
    ),
    Transport(
        "serve",
        "hybrid serve",
        "a host with the transport hybrid, `hvsock hybrid serve`, and a partition of the fabric",
    ),
    Transport(
        "hyperv",
        "hyperv",
        "the classes for Windows over a fake of Winsock; nothing of it has run on a real Windows",
        is_fake=True,
    ),
)


def empty(transport: Transport) -> dict[str, Any]:
    """The data of a transport of which nothing was run, which needs no reason."""
    return {"checks": dict.fromkeys(ALL_CHECKS, NOT_RUN), "throughput": None}


def problems(data: Mapping[str, Any]) -> list[str]:
    """What is wrong with the data; nothing where they are of this suite."""
    found = []
    for transport in TRANSPORTS:
        checks = data.get(transport.key, {}).get("checks", {})
        found += [f"{transport.key}: there is no outcome of {name}" for name in ALL_CHECKS if name not in checks]
        found += [f"{transport.key}: there is no check {name}" for name in checks if name not in ALL_CHECKS]
        for name, outcome in checks.items():
            word = word_of(outcome)
            if word not in WORDS:
                found.append(f"{transport.key}: {name} came to {outcome!r}, which is no outcome")
            elif transport.is_fake and word in (PASSED, ONLY_ONE_WAY):
                found.append(f"{transport.key}: {name} says {word!r}, and it is a fake")
            elif word == FAKE and not transport.is_fake:
                found.append(f"{transport.key}: {name} says {FAKE!r}, and it is none")
            elif word == NOT_RUN and not reason_of(outcome) and not is_unknown(checks):
                found.append(f"{transport.key}: {name} was not run, and no reason is given")
    found += [f"there is no transport {key}" for key in data if key not in {one.key for one in TRANSPORTS}]
    return found


def word_of(outcome: str) -> str:
    """Its first word or words."""
    return outcome.partition(":")[0]


def reason_of(outcome: str) -> str:
    """What stands behind the colon."""
    return outcome.partition(": ")[2]


def is_unknown(checks: Mapping[str, str]) -> bool:
    """Whether nothing was run of a transport."""
    return all(outcome == NOT_RUN for outcome in checks.values())


def cell(outcomes: Sequence[str]) -> str:
    """What the table shows of a feature with these outcomes."""
    words = Counter(word_of(one) for one in outcomes)
    if len(words) == 1:
        word = next(iter(words))
        reasons = {reason_of(one) for one in outcomes} - {""}
        if word == ABSENT and len(reasons) == 1:
            return f"no: {reasons.pop()}"
        return f"**{word.upper()}**" if word == FAILED else word
    parts = [f"{words[word]} {word}" for word in (PASSED, ONLY_ONE_WAY, FAKE, ABSENT, NOT_RUN) if words[word]]
    return "; ".join([*parts, *([f"**{words[FAILED]} FAIL**"] if words[FAILED] else [])])


def ratio(value: float | None) -> str:
    """Throughput over the fabric's, as the table shows it."""
    return NOT_RUN if value is None else f"{value:.2g}x"


def unrun(title: str, checks: Mapping[str, str]) -> list[str]:
    """The lines of what was not run of a transport, those with one reason together."""
    if is_unknown(checks):
        return [f"- {title}: nothing was run."]
    names: dict[str, list[str]] = {}
    for name, outcome in checks.items():
        if word_of(outcome) == NOT_RUN:
            names.setdefault(reason_of(outcome), []).append(f"`{name}`")
    return [f"- {title}, {', '.join(those)}: {reason}." for reason, those in names.items()]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rendered(data: Mapping[str, Any]) -> str:
    """docs/matrix.md."""
    blank = [""] * len(TRANSPORTS)
    lines = [
        *_BEFORE.splitlines(),
        *(f"- **{one.title}**: {one.how}." for one in TRANSPORTS),
        "",
        _row(["", *(one.title for one in TRANSPORTS)]),
        "|---" * (len(TRANSPORTS) + 1) + "|",
    ]
    for section in SECTIONS:
        lines.append(_row([f"**{section.title}**", *blank]))
        for feature in section.features:
            cells = [cell([data[one.key]["checks"][name] for name in feature.checks]) for one in TRANSPORTS]
            lines.append(_row([feature.name, *cells]))
    rates = [FAKE if one.is_fake else ratio(data[one.key]["throughput"]) for one in TRANSPORTS]
    failures = [
        f"- {one.title}, `{name}`: {reason_of(outcome).removeprefix(name).lstrip(': ')}"
        for one in TRANSPORTS
        for name, outcome in data[one.key]["checks"].items()
        if word_of(outcome) == FAILED
    ]
    left_out = [line for one in TRANSPORTS for line in unrun(one.title, data[one.key]["checks"])]
    lines += [
        _row(["**Throughput**", *blank]),
        _row(["64 KiB writes, over the fabric's on the same processor", *rates]),
        *_BETWEEN.splitlines(),
        *(failures or ["Nothing."]),
        *_BEHIND_FAILURES.splitlines(),
        *(left_out or ["Nothing."]),
        *_AFTER.splitlines(),
    ]
    return "\n".join(lines) + "\n"


_BEFORE: Final = f"""\
# What each transport does

This page is made by `{COMMAND}`, which runs the conformance suite of `hvsock.testing` and the address tests of
`tests/matrix/probes.py` over every transport, and keeps the outcomes in [matrix.json](matrix.json). What it cannot
run it leaves as it was, or as `not run`.

| in the table | meaning |
|---|---|
| pass | every check of that feature passed, for both ends of the connection |
| pass, one end | they passed for the host's end; the guest's is out of reach of such a check |
| fake | they passed against a fake, which says nothing of the real thing |
| no | the transport does not have it; with an errno, that is what it was seen to say |
| not run | nothing is known; why not, see below the table |
| FAIL | it does not do what it should; see below the table |

The transports, and what they were run with:

"""
_BETWEEN: Final = """
Throughput is a ratio to the fabric's in the same run: a guest's, whose processor is emulated, to that of a fabric
inside that guest. It is told, and nothing depends on it.

## What fails

"""
_BEHIND_FAILURES: Final = """
What fails with vhost-device-vsock 0.3.0 is its own doing, seen with plain sockets at both ends; see
[hybrid sockets](hybrid.md). It ends both directions when the host ends one: `half_close_keeps_other_direction`,
`shutdown_twice`, and `makefile_round_trip`, which ends its writing before it reads. It does not tell a guest that
waits in a send that the host closed: `blocked_send_fails_when_peer_closes`. All others wait, as their last step,
for the end that the guest made of its direction, which is not told to the host. MSG_PEEK, files, and either
direction while the other is full do work.

## What was not run

"""
_AFTER: Final = """
## What stands behind a no

- **Kernel vsock** shows a reset as an end of stream, and sends none for data left unread at a close. So does a
  guest's end over the device, while the host's end tells a reset that the device makes. A connection to the
  guest's own context id goes over the loopback, and shows as that to who accepts it.
- **A guest** is reached by CIDs and ports: it has no SILOHOST, no CHILDREN, and no services without a port or an
  alias; what connects to it shows there with a port that the device chose. LOOPBACK within it is its kernel's.
- **Hybrid sockets** are streams between a host and its VMs, and say neither who connects nor that a stream was
  reset: `hvsock hybrid serve`, too, shows a reset as an end of stream. vhost-device-vsock takes ports alone.
- **Windows** has no SOCK_SEQPACKET for these sockets, and documents no way to read an option back. It knows VMs by
  their ids alone: one that is made of a CID is no VM.
"""
