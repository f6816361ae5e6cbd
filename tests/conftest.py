"""Fixtures of every test."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from hvsock.testing.leaks import leak_check
from tests.support import FEW, SOAK, sample

# `make test` tries the same examples in every run, so that a failure is one of the change at hand;
# `make soak` looks for new ones. Neither asserts a time.
settings.register_profile(
    "hvsock", max_examples=sample(40, 100), derandomize=not SOAK, deadline=None, print_blob=True
)
settings.load_profile("hvsock")
settings.register_profile("few", max_examples=sample(100, 100), database=None)
if FEW:
    settings.load_profile("few")

# whoever runs the tests may have a configuration
os.environ["HVSOCK_CONFIG"] = os.devnull
os.environ.pop("HVSOCK_PROFILE", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell has its background jobs ignore it, and so would all that tests start and then interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = [] if SOAK else ["virtio/test_fuzz_guided.py"]
if sys.platform != "linux":
    # what runs over the fabric needs Linux; its modules say so to type checkers by an assert
    collect_ignore += [
        "cli",
        "conformance",
        "device",
        "docs",
        "examples",
        "fabric",
        "faults",
        "registry/test_wine.py",
        *(f"hybrid/test_{name}.py" for name in ("connecting", "following", "limits", "listening", "serving")),
        "hybrid/test_vhost_device.py",
        "interop",
        "matrix",
        "sockets",
        "vm",
    ]

HERE = Path(__file__).parent
WITH_VMS = (HERE / "vm", HERE / "cli" / "test_vm.py")
"""Where the tests are that boot VMs, or make the image for them."""
SHARED_GUESTS = HERE / "vm" / "traffic"
"""Where those are that share guests."""
PAGES = HERE / "docs"
"""Where the examples of the documentation are run."""
WHOLE = (*(HERE / name for name in ("conformance", "docs", "topology", "virtio", "vm")), *HERE.glob("test_*.py"))
"""Where each set of parameters is tried in `make test` too: tables of rules, and what is fast."""
MANY_TESTS = 2_000
"""With fewer tests, somebody runs those of one part, and each set of parameters."""
MOST_SETS = 3
"""Of parameters of one test elsewhere that `make test` tries, spread over all of them: most start processes."""
LEFT_OUT = "left_out"
"""What a process of xdist calls the tests that are left out, among its results."""
VM_TIMEOUT_SECONDS = 180
"""Of one of them that names no time-out of its own."""


@functools.cache
def has_vms(path: Path) -> bool:
    """Whether the tests of a module are among those."""
    return any(path.is_relative_to(one) for one in WITH_VMS)


@functools.cache
def is_whole(path: Path) -> bool:
    """Whether a module is where all sets of parameters are tried."""
    return any(path.is_relative_to(one) for one in WHOLE)


def test_of(item: pytest.Item) -> str:
    """A test without its parameters."""
    return item.nodeid.partition("[")[0]


def spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Some of the sets of parameters of one test, the first and the last among them; all where all are tried."""
    if len(items) <= MOST_SETS or is_whole(items[0].path):
        return items
    return [items[number * (len(items) - 1) // (MOST_SETS - 1)] for number in range(MOST_SETS)]


def sampled(items: list[pytest.Item]) -> list[pytest.Item]:
    """Those to run: not what is marked as part of the soak alone, and not most of many sets of parameters."""
    if SOAK:
        return items
    items = [item for item in items if item.get_closest_marker("soak") is None]
    if FEW or len(items) <= MANY_TESTS:
        return items
    return [item for _, same in itertools.groupby(items, test_of) for item in spread(list(same))]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives tests with VMs more time, and begins with them: they take longest, and few processes run them.

    What the sample leaves out the summary counts.
    """
    kept = sampled(items)
    left_out = set(items).difference(kept)
    items[:] = kept
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
    for item in items:
        if has_vms(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(VM_TIMEOUT_SECONDS))
    items.sort(key=lambda item: not has_vms(item.path))


def pytest_collection_finish() -> None:
    """Sets all that was collected aside: no look for garbage goes through it again, here or in forked children."""
    gc.collect()
    gc.freeze()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Puts what is left out among the results of a process of xdist, which itself tells nobody."""
    for item in items:
        if hasattr(item.config, "workeroutput"):
            item.config.workeroutput.setdefault(LEFT_OUT, []).append(item.nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Takes over what a process of xdist left out, for the summary; all of them leave out the same."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not reporter.stats.get("deselected"):
        # one that crashed has no results
        names = getattr(node, "workeroutput", {}).get(LEFT_OUT, [])
        reporter.stats["deselected"] = [SimpleNamespace(nodeid=name) for name in names]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    """How `make test` deals tests out to its processes."""
    return ByModule(config, log)


class ByModule(LoadScopeScheduling):  # type: ignore[misc] # xdist has no py.typed
    """Whole modules, since they share fixtures; pages of the documentation share none.

    What has VMs goes to one process where it shares its guests, and to one other: so no more than two guests have
    much to do at once.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::", 1)[0]
        if (HERE.parent / module).is_relative_to(SHARED_GUESTS):
            return "shared guests"
        if (HERE.parent / module).is_relative_to(PAGES):
            return nodeid
        return "other VMs" if has_vms(HERE.parent / module) else module


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves a descriptor, thread, child process, task or handler of signals behind.

    It is set up before a test's other function-scoped fixtures and checked after they are taken down.
    What fixtures of a wider scope hold was there before, unless a test asks for one by
    request.getfixturevalue. Where counts are to be small, another run of the same test has checked it.
    """
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.nullcontext() if FEW else leak_check():
        yield
    # what a test's process ignores, its children ignore too
    assert signals == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.fixture(autouse=True)
def no_vms_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process knows the VMMs' paths that it was given for good; a test has not been given those of others."""
    known = sys.modules.get("hvsock.machines.known")
    if known is not None:
        monkeypatch.setattr(known, "_given", {})


@pytest.fixture
def soak() -> bool:
    """Whether this is `make soak`; for counts there is :func:`tests.support.sample`."""
    return SOAK
