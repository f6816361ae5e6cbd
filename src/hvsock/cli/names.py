"""Names of services and partitions on the command line, and their completion."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from hvsock import transport
from hvsock.addresses import WELL_KNOWN_VMIDS, VmId, parse_vm_id
from hvsock.errors import HvsockError, NoFabricError, NotFoundError, RefusedError
from hvsock.fabric import paths
from hvsock.transport import Transport

from .main import COMPLETION_VARIABLE

if TYPE_CHECKING:
    if sys.platform == "win32":
        from hvsock.windows.host import HostRegistry as Registry
    else:
        from hvsock.registry.store import Registry
    from hvsock.topology.partitions import Partition

MAX_COMPLETIONS: Final = 200
"""Most names that a completion offers."""
COMPLETION_SECONDS: Final = 0.5
"""How long a completion looks for names: somebody waits for the answer to a key."""


def open_registry(*, make: bool = False) -> Registry:
    """The registry of this fabric, or of this Windows; the caller closes it.

    Args:
        make: make the fabric's folder and the registry where there are none; only the host does.

    Raises:
        NoFabricError: there is none.
        RefusedError: the caller may not read it, or is in a guest.
        StateError: it cannot be used.
    """
    if sys.platform == "win32":
        transport.chosen()  # says what is wrong with HVSOCK_TRANSPORT
        from hvsock.windows.host import HostRegistry

        return HostRegistry()
    from hvsock.registry.store import Registry

    if transport.chosen() is Transport.VSOCK:
        raise RefusedError("this is a guest, and the registry is its host's; see here: hvsock service list")
    folder = paths.fabric_folder()
    where = os.path.join(folder, "registry")
    foreign = None
    if not paths.speaks_for_host(folder):
        foreign = (
            f"only the host changes the registry, and this process speaks for {paths.partition_folder()}: "
            f"unset {paths.PARTITION_VARIABLE}"
        )
    elif make:
        _make_folders(folder, where)
    if not os.path.lexists(where):
        raise NoFabricError(f"there is no fabric in {folder}; start one with: hvsock up")
    return Registry(where, read_only_because=foreign)


def _make_folders(folder: str, registry: str) -> None:
    """Make the fabric's folder and the registry's; what root makes in somebody else's folder is theirs."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        os.mkdir(registry, 0o700)
    except FileExistsError:
        return
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = os.stat(folder)
        os.chown(registry, owner.st_uid, owner.st_gid)


def vm_id_of(text: str) -> VmId:
    """The VmId of one partition, by its name or its VmId.

    Raises:
        NotFoundError: there is no such partition, or it is the host.
    """
    word = text.lower() in WELL_KNOWN_VMIDS
    if sys.platform != "win32" and text.casefold() == paths.HOST_FOLDER:
        raise NotFoundError("'host' is this host itself, and none of its VMs; see: hvsock partition list")
    found = None if word else parse_vm_id(text)
    if word:
        where = "Get-VM" if sys.platform == "win32" else "hvsock partition list"
        raise NotFoundError(f"{text} stands for partitions and is none's own name; see: {where}")
    if found is not None:
        return found
    if sys.platform == "win32":
        from hvsock.windows import vms

        return vms.find(text).id
    with contextlib.suppress(NoFabricError, ImportError):
        from hvsock.fabric import client

        return VmId(client.call(paths.partition_folder(), "resolve", vm=text, service=None)["vm_id"])
    for partition in written_down():
        if partition.name.casefold() == text.casefold():
            return partition.id
    raise NotFoundError(f"no partition is called {text!r}; see: hvsock partition list")


def peer_id_of(text: str) -> VmId:
    """The VmId of one VM to connect to, by its name or its VmId, as the transport of this process knows it.

    Raises:
        NotFoundError: there is no such VM.
        UsageError: the configuration cannot be used.
    """
    if sys.platform != "win32" and text.lower() not in WELL_KNOWN_VMIDS and parse_vm_id(text) is None:
        from hvsock.machines import known
        from hvsock.names import has_broker

        if not has_broker():
            return known.named(text).id
    return vm_id_of(text)


def folder_of(text: str) -> str:
    """The folder of a partition, by its name or its VmId.

    Raises:
        NotFoundError: there is no such partition.
    """
    fabric = paths.fabric_folder()
    if text.lower() == paths.HOST_FOLDER:
        return _existing(paths.host_folder(fabric), text)
    vm_id = vm_id_of(text)
    folder = os.path.join(fabric, "partitions", str(vm_id))
    if not os.path.isdir(folder) and any(one.id == vm_id and one.parent is None for one in written_down()):
        folder = paths.host_folder(fabric)
    return _existing(folder, text)


def _existing(folder: str, text: str) -> str:
    if not os.path.isdir(folder):
        raise NotFoundError(f"partition {text!r} has no folder {folder}; see: hvsock partition list")
    return folder


def names_by_id() -> dict[str, str]:
    """The names of the partitions by VmId, as far as this process may know them."""
    if sys.platform == "win32":
        from hvsock.windows import vms

        with contextlib.suppress(HvsockError):
            return {str(one.id): one.name for one in vms.by_powershell()}
        return {}
    with contextlib.suppress(HvsockError, OSError, ImportError):
        from hvsock.fabric import client

        found = client.call(paths.partition_folder(), "partition.list")
        return {one["id"]: one["name"] for one in found}
    return {str(one.id): one.name for one in written_down()}


def written_down() -> Iterable[Partition]:
    """The partitions as the broker wrote them down last; none where that cannot be read."""
    with contextlib.suppress(HvsockError, OSError, ImportError):
        from hvsock.fabric.broker.folder import load_tree

        return list(load_tree(paths.fabric_folder()) or ())
    return ()


def complete_services(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of services that begin with `incomplete`."""
    return _offer(_service_names, incomplete)


def complete_partitions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of partitions that begin with `incomplete`."""
    return _offer(lambda: sorted(names_by_id().values()), incomplete)


def complete_addresses(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Words for VmIds, and names of partitions, that begin with `incomplete`."""
    words = _matching(["parent", "children", "loopback", "any", "silohost"], incomplete)
    return [*words, *_offer(lambda: sorted(set(names_by_id().values()) - {"host"}), incomplete)]


def _service_names() -> list[str]:
    with contextlib.suppress(HvsockError, OSError), open_registry() as registry:
        return [entry.name for entry in registry.entries()]
    from hvsock.fabric import client

    return [one["name"] for one in client.call(paths.partition_folder(), "services")]


def _offer(find: Callable[[], Iterable[str]], incomplete: str) -> list[CompletionItem[str]]:
    """What `find` gives within COMPLETION_SECONDS; nothing when it fails."""
    found: list[str] = []

    def look() -> None:
        with contextlib.suppress(Exception):
            found.extend(find())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(COMPLETION_SECONDS)
    return _matching(found, incomplete)


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem[str]]:
    wanted = incomplete.casefold()
    bash = os.environ.get(COMPLETION_VARIABLE, "").startswith("bash")
    matching = [name for name in names if name.casefold().startswith(wanted)]
    return [CompletionItem(_escaped(name) if bash else name) for name in matching[:MAX_COMPLETIONS]]


def _escaped(name: str) -> str:
    """`name` for bash, which puts it into the line as it is; click's script takes one level of backslashes off."""
    return "".join(c if c.isalnum() or c in "_-./:@%+=," else f"\\\\{c}" for c in name)


def user_id(text: str) -> int:
    """The id of a user, by name or number.

    Raises:
        NotFoundError: there is no such user.
    """
    return _unix_id(text, "user")


def group_id(text: str) -> int:
    """The id of a group, by name or number.

    Raises:
        NotFoundError: there is no such group.
    """
    return _unix_id(text, "group")


def _unix_id(text: str, what: str) -> int:
    if text.isascii() and text.isdecimal():
        return int(text)
    if sys.platform != "win32":
        import grp
        import pwd

        with contextlib.suppress(KeyError):
            return pwd.getpwnam(text).pw_uid if what == "user" else grp.getgrnam(text).gr_gid
    raise NotFoundError(f"there is no {what} {text!r} on this machine")


def unix_name(number: int, what: str) -> str:
    """The name of a user or group, or its number where it has none."""
    if sys.platform != "win32":
        import grp
        import pwd

        with contextlib.suppress(KeyError):
            return pwd.getpwuid(number).pw_name if what == "user" else grp.getgrgid(number).gr_name
    return str(number)


def describe_access(access: Any) -> str:
    """Who may: a security descriptor, or users and groups besides those who administer the fabric."""
    from hvsock.topology.access import Allowed
    from hvsock.topology.sddl import format_sddl

    if not isinstance(access, Allowed):
        return format_sddl(access)
    if access.everyone:
        return "everyone"
    users = [f"user:{unix_name(number, 'user')}" for number in sorted(access.uids)]
    groups = [f"group:{unix_name(number, 'group')}" for number in sorted(access.gids)]
    return ", ".join([*users, *groups]) or "owner"
