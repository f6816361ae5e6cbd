"""Imports go downwards only, the rules at the core are pure, and modules stay readable.

Read from the source, so that imports inside functions and under ``if TYPE_CHECKING`` count like any other.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).parent.parent / "src"

BASE = ("hvsock.constants", "hvsock.errors", "hvsock.addresses")
RULES = (*BASE, "hvsock.topology", "hvsock.registry")
WIRE = (*RULES, "hvsock.fabric.messages", "hvsock.fabric.paths", "hvsock.fabric.marks", "hvsock.fabric.passing")
BROKER = ("hvsock.fabric.broker", "hvsock.fabric.embedded")

PURE_OF_POWERSHELL = tuple(
    f"hvsock.services.powershell.{name}"
    for name in ("lockstep", "handshake", "admission", "tokens", "clixml", "framing", "fragments")
)
"""Each may import those before it."""
PURE_OF_HYBRID = ("hvsock.hybrid.profiles", "hvsock.hybrid.handshake")
PURE_OF_NBD = ("hvsock.nbd.handshake",)
CONFIG = ("hvsock.config.settings", "hvsock.config.files")
NAMED = (*BASE, *CONFIG, "hvsock.transport", "hvsock.machines", "hvsock.urls")
"""What knows the written forms of addresses, and VMs without a broker."""
PURE_OF_MACHINES = ("hvsock.machines.libvirt", "hvsock.machines.qemu")
PURE_OF_SERVICES = (
    *(f"hvsock.services.{name}" for name in ("messages", "policy", "negotiation", "proto", "rates")),
    *(f"hvsock.services.predefined.{name}" for name in ("timesync.arithmetic", "kvp.pools", "filecopy.frames")),
    *(f"hvsock.services.predefined.{name}" for name in ("vss.machine", "vss.mounts")),
    *PURE_OF_POWERSHELL,
)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "hvsock._version": (),
    "hvsock.constants": (),
    "hvsock.errors": (),
    "hvsock.notify": (),
    "hvsock.tied": (),
    "hvsock.addresses": ("hvsock.constants", "hvsock.errors"),
    "hvsock.topology": BASE,
    "hvsock.hybrid.profiles": BASE,
    "hvsock.hybrid.handshake": (*BASE, "hvsock.hybrid.profiles"),
    "hvsock.urls": (*BASE, "hvsock.hybrid.profiles"),
    "hvsock.config": (),
    "hvsock.config.settings": BASE,
    "hvsock.config.schema": (*BASE, "hvsock.topology", "hvsock.hybrid.profiles", "hvsock.config.settings"),
    "hvsock.config.files": ("hvsock.errors", "hvsock.config.settings", "hvsock.config.schema"),
    "hvsock.transport": ("hvsock.errors", "hvsock.config.files"),
    "hvsock.machines.libvirt": (*BASE, "hvsock.config.settings"),
    "hvsock.machines.qemu": (*BASE, "hvsock.config.settings", "hvsock.machines.libvirt"),
    "hvsock.machines": (*BASE, *CONFIG, "hvsock.machines.libvirt", "hvsock.machines.qemu"),
    "hvsock.registry": (*BASE, "hvsock.topology"),
    "hvsock.fabric": (),
    "hvsock.fabric.messages": RULES,
    "hvsock.fabric.paths": RULES,
    "hvsock.fabric.marks": (),
    "hvsock.fabric.passing": (),
    "hvsock.fabric.reactor": (),
    "hvsock.fabric.door": ("hvsock.fabric.reactor",),
    "hvsock.fabric.vsocklink": BASE,
    "hvsock.fabric.client": (*WIRE, "hvsock.config.files", "hvsock.transport", "hvsock.fabric.vsocklink"),
    "hvsock.fabric.couriers": (*(*WIRE, "hvsock.fabric.client", "hvsock.fabric.reactor", "hvsock.fabric.door"),),
    "hvsock.fabric.broker": (*WIRE, "hvsock.fabric.reactor", "hvsock.notify"),
    "hvsock.fabric.embedded": (*WIRE, "hvsock.fabric.client", "hvsock.fabric.broker"),
    "hvsock.names": (*NAMED, "hvsock.fabric.client"),
    "hvsock.hybrid.connecting": (*WIRE, *PURE_OF_HYBRID, "hvsock.names"),
    "hvsock.hybrid.listening": (*WIRE, *PURE_OF_HYBRID, "hvsock.hybrid.connecting"),
    "hvsock.availability": (*NAMED, "hvsock.fabric.paths", "hvsock.hybrid.listening"),
    "hvsock.kept": (*RULES, "hvsock.fabric.paths", "hvsock.transport", "hvsock.tied"),
    "hvsock.virtio": BASE,
    "hvsock.windows": (*RULES, "hvsock.hybrid.profiles", "hvsock.urls"),
    "hvsock.sockets": (
        *WIRE,
        "hvsock.windows",
        "hvsock.transport",
        "hvsock.fabric.vsocklink",
        "hvsock.fabric.client",
        *(*NAMED, "hvsock.names", *PURE_OF_HYBRID, "hvsock.hybrid.connecting", "hvsock.hybrid.listening"),
    ),
    "hvsock": (*BASE, "hvsock._version", "hvsock.sockets"),
    "hvsock.device": (
        *(*WIRE, "hvsock.fabric.client", "hvsock.fabric.reactor", "hvsock.fabric.door", "hvsock.virtio"),
        "hvsock.fabric.couriers",
    ),
    "hvsock.relay": (
        *NAMED,
        *(*WIRE, "hvsock.transport", "hvsock.tied", "hvsock.fabric.client", "hvsock.fabric.reactor"),
        *("hvsock.sockets", "hvsock.kept", "hvsock.fabric.couriers"),
    ),
    "hvsock.hybrid": (
        *(*WIRE, "hvsock.fabric.client", "hvsock.fabric.reactor", "hvsock.fabric.door"),
        *("hvsock.sockets", "hvsock.relay", "hvsock.hybrid.connecting", "hvsock.hybrid.listening"),
        *PURE_OF_HYBRID,
    ),
    "hvsock.nbd.handshake": BASE,
    "hvsock.nbd": (*BASE, "hvsock.fabric.reactor", "hvsock.relay", *PURE_OF_NBD),
    "hvsock.services.types": (),
    **dict.fromkeys(PURE_OF_SERVICES, (*BASE, "hvsock.services.types")),
    **{name: (*BASE, *PURE_OF_POWERSHELL[:place]) for place, name in enumerate(PURE_OF_POWERSHELL)},
    "hvsock.services": (
        *(*BASE, "hvsock._version", "hvsock.transport", "hvsock.fabric.client", "hvsock.sockets", "hvsock"),
        *("hvsock.fabric.paths", "hvsock.fabric.passing", "hvsock.services.types", *PURE_OF_SERVICES),
        *("hvsock.machines", "hvsock.names"),
    ),
    "hvsock.vm": (
        *(*WIRE, "hvsock.transport", "hvsock.fabric.client", "hvsock.sockets", "hvsock", "hvsock._version"),
        "hvsock.tied",
    ),
    "hvsock.testing": (
        *(*WIRE, "hvsock.fabric.client", *BROKER, "hvsock.virtio", "hvsock.sockets", "hvsock", "hvsock._version"),
        *("hvsock.services.powershell.framing", "hvsock.services.powershell.fragments"),
    ),
    "hvsock.selftest": (
        *(*WIRE, *NAMED, "hvsock.fabric.client", "hvsock.windows", "hvsock.sockets", "hvsock", "hvsock.tied"),
        *("hvsock.hybrid.listening", "hvsock.testing"),
    ),
    "hvsock.cli": (
        *(*WIRE, "hvsock.fabric.client", *BROKER, "hvsock.sockets", "hvsock", "hvsock.vm", "hvsock._version"),
        *("hvsock.transport", "hvsock.virtio", "hvsock.device", "hvsock.services", "hvsock.tied"),
        *("hvsock.services.types", *PURE_OF_SERVICES),
        *("hvsock.notify", "hvsock.kept", "hvsock.windows"),
        *("hvsock.nbd", *PURE_OF_NBD),
        *("hvsock.relay", "hvsock.hybrid", *PURE_OF_HYBRID, *NAMED, "hvsock.names", "hvsock.availability"),
        *("hvsock.hybrid.connecting", "hvsock.hybrid.listening", "hvsock.selftest"),
    ),
    "hvsock.__main__": ("hvsock.cli",),
}
"""From the bottom up: a module, or a package with all that is in it, and what it may import besides itself.

Nobody may import what stands further down in the table; hvsock.selftest alone imports hvsock.testing, and
hvsock.cli is for ``python -m hvsock`` alone.
"""

FACADES = {"hvsock", "hvsock.fabric", "hvsock.config"}
"""Packages whose line in the table is for their ``__init__`` alone: what is in them has lines of its own."""

PURE = (
    *BASE,
    "hvsock.topology",
    "hvsock.fabric.messages",
    "hvsock.virtio",
    "hvsock.services.types",
    *PURE_OF_SERVICES,
    *PURE_OF_HYBRID,
    *PURE_OF_NBD,
    *PURE_OF_MACHINES,
    *("hvsock.urls", "hvsock.config.settings", "hvsock.config.schema"),
)
IMPURE = {
    *("socket", "select", "selectors", "asyncio", "time", "datetime", "threading", "multiprocessing"),
    *("subprocess", "random", "os"),
}
"""What pure modules do not import; addresses have os.urandom, to make fresh ids."""

MAX_MODULE_LINES = 800


class Module(NamedTuple):
    """A module and its source; `known` are the names of all modules there are."""

    name: str
    source: str
    is_package: bool
    known: frozenset[str]


class Import(NamedTuple):
    """One name that a module imports."""

    line: int
    name: str


def modules() -> dict[str, Module]:
    """The modules in src, by name."""
    names = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        names[".".join(parts[:-1] if is_package else parts)] = (path, is_package)
    known = frozenset(names)
    return {
        name: Module(name, path.read_text(encoding="utf-8"), is_package, known)
        for name, (path, is_package) in names.items()
    }


MODULES = modules()


def imports_of(module: Module) -> Iterator[Import]:
    """What `module` imports, wherever in it; names of modules in full, dynamic imports of literal names too."""
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, "." * node.level + (node.module or ""))
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                is_module = inside in module.known or inside in MAY_IMPORT
                yield Import(node.lineno, inside if is_module else base)
        elif isinstance(node, ast.Call) and node.args:
            called, what = node.func, node.args[0]
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            is_literal = isinstance(what, ast.Constant) and isinstance(what.value, str)
            if name in {"import_module", "__import__"} and is_literal:
                yield Import(node.lineno, absolute(module, ast.literal_eval(what)))


def absolute(module: Module, name: str) -> str:
    """`name` in full, where it starts with dots."""
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if not level:
        return name
    upwards = level - 1 if module.is_package else level
    package = module.name.split(".")[: -upwards or None]
    return ".".join([*package, rest] if rest else package)


def line_in_table(name: str) -> str | None:
    """The line of the table that a module belongs to, or None when nobody has given it a place."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        found = ".".join(parts[:count])
        if found in MAY_IMPORT and (found == name or found not in FACADES):
            return found
    return None


def violations(module: Module) -> list[str]:
    """What `module` imports and may not, one message each."""
    own = line_in_table(module.name)
    if own is None:
        problem = f"{module.name} has no place in the architecture"
        return [
            f"{problem}: add a line for it to MAY_IMPORT in {Path(__file__).name}, below all that it may import"
        ]
    found = []
    for line, name in imports_of(module):
        if name.split(".")[0] == "hvsock":
            target = line_in_table(name)
            if target != own and target not in MAY_IMPORT[own]:
                allowed = ", ".join(MAY_IMPORT[own]) or "nothing of hvsock"
                found.append(f"{module.name}:{line} imports {name}; {own} may import {allowed}")
        elif own in PURE and name.split(".")[0] in IMPURE and (own, name) != ("hvsock.addresses", "os"):
            found.append(f"{module.name}:{line} imports {name}; {own} is pure: take it as an argument instead")
    return found


def test_imports_go_downwards_only() -> None:
    found = [text for module in MODULES.values() for text in violations(module)]
    assert not found, "\n".join(found)


def test_the_table_itself_goes_downwards_only() -> None:
    """What a line may import stands above it, so that no circle can come about."""
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert set(allowed) <= above, name
        above.add(name)


def test_sockets_cannot_reach_the_broker_and_only_the_selftest_imports_testing() -> None:
    reached, todo = set[str](), ["hvsock.sockets"]
    while todo:
        reached.update(allowed := MAY_IMPORT[todo.pop()])
        todo.extend(allowed)
    assert "hvsock.fabric.client" in reached
    assert not {"hvsock.fabric.broker", "hvsock.fabric.embedded"} & reached
    assert [name for name, allowed in MAY_IMPORT.items() if "hvsock.testing" in allowed] == ["hvsock.selftest"]
    assert [name for name, allowed in MAY_IMPORT.items() if "hvsock.cli" in allowed] == ["hvsock.__main__"]


def synthetic(name: str, source: str, is_package: bool = False) -> Module:
    """A module that is not in src, with neighbours that are."""
    return Module(name, source, is_package, frozenset(MODULES) | {name})


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("hvsock.topology.rules", "from hvsock.registry import store"),
        ("hvsock.topology.rules", "import hvsock.fabric.client as c"),
        ("hvsock.topology.rules", "from hvsock.fabric import client"),
        ("hvsock.topology.rules", "from ..fabric import paths"),
        ("hvsock.topology.rules", "from hvsock import socket"),
        ("hvsock.topology.rules", "from .. import socket"),
        ("hvsock.topology.rules", "def f():\n    from hvsock.sockets import socket"),
        ("hvsock.topology.rules", "if TYPE_CHECKING:\n    from hvsock.fabric.broker.broker import Broker"),
        ("hvsock.topology.rules", "importlib.import_module('hvsock.cli.main')"),
        ("hvsock.topology.rules", "import_module('..registry', __package__)"),
        ("hvsock.topology.rules", "__import__('hvsock.registry')"),
        ("hvsock.topology.rules", "try:\n    import socket\nexcept ImportError:\n    pass"),
        ("hvsock.topology.rules", "from time import monotonic"),
        ("hvsock.topology.rules", "import asyncio.events"),
        ("hvsock.topology.rules", "import os"),
        ("hvsock.fabric.messages", "import datetime"),
        ("hvsock.fabric.messages", "from . import paths"),
        ("hvsock.fabric.broker.server", "from hvsock.fabric.client import call"),
        ("hvsock.fabric.client", "from .broker import server"),
        ("hvsock.sockets.socket", "from hvsock.fabric.broker import broker"),
        ("hvsock.sockets.socket", "import hvsock.fabric.embedded"),
        ("hvsock.sockets.socket", "from hvsock.testing import clock"),
        ("hvsock.registry.store", "import hvsock"),
        ("hvsock.testing.clock", "import hvsock.cli"),
        ("hvsock.cli.demo", "from hvsock.testing import streams"),
        ("hvsock.addresses", "from .topology import access"),
        ("hvsock.constants", "from . import addresses"),
        ("hvsock.fabric.relay", ""),
        ("hvsock.novelty", ""),
        ("hvsock.services.policy", "from . import wire"),
        ("hvsock.services.messages", "import asyncio"),
        ("hvsock.services.predefined.vss.mounts", "import os"),
    ],
)
def test_the_checker_finds_what_is_forbidden(name: str, source: str) -> None:
    assert len(violations(synthetic(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "hvsock.topology.rules",
            "from hvsock.addresses import VmId\nfrom hvsock import errors\nfrom .. import constants",
        ),
        ("hvsock.topology.rules", "import dataclasses\nfrom . import access\nfrom .matching import match"),
        ("hvsock.addresses", "import os\nfrom .constants import AF_HYPERV"),
        ("hvsock.fabric.client", "import socket, time\nfrom . import messages, paths"),
        (
            "hvsock.fabric.broker.server",
            "import select\nfrom hvsock.fabric import messages\nfrom .broker import Broker",
        ),
        ("hvsock.fabric.embedded", "from .broker.broker import Broker\nfrom . import client"),
        (
            "hvsock.sockets.socket",
            "from hvsock.fabric import client\nfrom hvsock.topology.reachability import view",
        ),
        ("hvsock.cli.demo", "import hvsock\nfrom hvsock.fabric import embedded"),
        ("hvsock.testing.pytest_plugin", "from hvsock.testing import clock\nfrom .streams import memory_pair"),
    ],
)
def test_the_checker_leaves_alone_what_is_allowed(name: str, source: str) -> None:
    assert violations(synthetic(name, source)) == []


def test_the_checker_reads_packages() -> None:
    """In an ``__init__`` a single dot is the package itself."""
    package = synthetic("hvsock.topology", "from . import access\nfrom .access import Owner", is_package=True)
    assert [name for _, name in imports_of(package)] == ["hvsock.topology.access", "hvsock.topology.access"]
    assert violations(package) == []
    assert len(violations(synthetic("hvsock", "from .fabric import broker", is_package=True))) == 1


def test_a_module_without_a_place_is_told_what_to_do() -> None:
    (message,) = violations(synthetic("hvsock.novelty", ""))
    assert "hvsock.novelty" in message
    assert "add a line for it to MAY_IMPORT" in message


def test_addresses_have_nothing_of_os_but_urandom() -> None:
    tree = ast.parse(MODULES["hvsock.addresses"].source)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert used == {"urandom"}


def test_import_hvsock_loads_the_standard_library_only() -> None:
    code = """if True:
        import sys
        before = set(sys.modules)
        import hvsock
        print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "hvsock" in loaded
    assert loaded - set(sys.stdlib_module_names) == {"hvsock"}


def test_no_module_is_too_long() -> None:
    lines = {name: module.source.count("\n") for name, module in MODULES.items()}
    too_long = {name: count for name, count in lines.items() if count > MAX_MODULE_LINES}
    assert not too_long, f"take them apart by what their parts are about: {too_long}"


def has_all(module: Module) -> bool:
    """Whether a module says what it gives to others."""
    return any(
        isinstance(target, ast.Name) and target.id == "__all__"
        for node in ast.parse(module.source).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )


def test_everything_in_all_exists() -> None:
    """Looked at in another process, since a module may open what it keeps for good."""
    code = """if True:
        import importlib, json, sys
        def look(name):
            module = importlib.import_module(name)
            twice = [one for one in module.__all__ if module.__all__.count(one) > 1]
            return twice + [one for one in module.__all__ if not hasattr(module, one)]
        print(json.dumps({name: look(name) for name in sys.argv[1:]}))
    """
    names = [name for name, module in MODULES.items() if has_all(module)]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [] for name in names}
