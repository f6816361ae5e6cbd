"""`hvsock kvp`: keys and values between host and guest."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import click

from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_partitions
from hvsock.cli.outcome import printable, say
from hvsock.cli.output import Column, Table, json_option, print_json, print_table, size_text, to_terminal
from hvsock.cli.silent import asking
from hvsock.constants import KEY_VALUE_PAIR_EXCHANGE
from hvsock.errors import NotFoundError, UsageError
from hvsock.services.predefined.kvp.host import Exchange, exchange
from hvsock.services.predefined.kvp.interface import Change, ChangeKind, Item
from hvsock.services.predefined.kvp.pacing import paced
from hvsock.services.predefined.kvp.pools import MAX_VALUE_BYTES, Pool, Side, own_pool, pool_of
from hvsock.services.predefined.kvp.programs import Local, local

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

_HERE: Final = "hvsock.cli.commands.kvp"
COMMANDS: Final = {
    "list": Entry(f"{_HERE}:list_", "List keys with their values."),
    "get": Entry(f"{_HERE}:get", "Print the value of a key."),
    "set": Entry(f"{_HERE}:set_", "Set keys, all or none."),
    "delete": Entry(f"{_HERE}:delete", "Delete keys, all or none."),
    "acknowledge": Entry(f"{_HERE}:acknowledge", "Tell the other side that its values were taken note of."),
    "watch": Entry(f"{_HERE}:watch", "Print changes as they come."),
}
HERE: Final = "loopback"
"""The VM that stands for the guest or partition in which the command runs."""
SHOWN_CHARACTERS: Final = 60
"""How much of a value a table shows."""
_FIND_ORDER: Final = (Pool.GUEST, Pool.AUTO, Pool.EXTERNAL, Pool.AUTO_EXTERNAL)


@click.group(cls=LazyGroup, table=COMMANDS)
@click.option("--state-folder", "folder", metavar="FOLDER", help="In a guest, its agent's, unless the default.")
@click.pass_context
def kvp(context: click.Context, folder: str | None) -> None:
    """Data exchange: keys with values between a host and its guests, kept in the guest (Key-Value Pair Exchange).

    On the host, VM is a guest's name; in a guest, it is the word loopback. There are four pools: external (what
    the host tells the guest), guest (what the guest tells the host), auto and auto_external (what the guest's
    agent and the host say of themselves).
    """
    context.obj = folder


def _pool_option(function: Callable[..., Any]) -> Callable[..., Any]:
    words = click.Choice([one.word for one in Pool], case_sensitive=False)
    return click.option("--pool", type=words, help="The pool; by default all, or the own one to change.")(function)


_vm_argument = click.argument("vm", shell_complete=complete_partitions)


@click.command("list")
@_vm_argument
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@_pool_option
@json_option
def list_(vm: str, keys: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """List the keys of VM with their values."""
    found = _run(vm, lambda side: side.items(*_pools(pool)), lambda here: here.items(*_pools(pool)))
    items = [one for one in found if not keys or one.key in keys]
    if missing := set(keys) - {one.key for one in items}:
        raise NotFoundError(f"there is no key {min(missing)!a}")
    if as_json:
        print_json([_row(one) for one in items])
        return
    columns = (*map(Column, ("POOL", "KEY")), Column("VALUE", fold=True), Column("OWNER"))
    rows = [
        (
            one.pool.word,
            printable(one.key),
            shown(one),
            printable(one.owner),
            str(one.revision),
            _acknowledged(one),
        )
        for one in items
    ]
    print_table(Table((*columns, Column("REVISION", right=True), Column("ACKNOWLEDGED")), rows))


@click.command()
@_vm_argument
@click.argument("key")
@_pool_option
@click.option("--file", type=click.Path(dir_okay=False), help="Write the value to this file.")
@json_option
def get(vm: str, key: str, pool: str | None, file: str | None, as_json: bool) -> None:
    """Print the value of KEY: as it is to a pipe or file, with nothing but printable characters to a terminal."""
    pools = _pools(pool) or _FIND_ORDER

    def find(here: Local) -> Item:
        for one in pools:
            with contextlib.suppress(NotFoundError):
                return here.get(key, one)
        raise NotFoundError(f"there is no key {key!a} in {', '.join(one.word for one in pools)}")

    item = _run(vm, lambda side: side.get(key, pools[0]) if pool else side.find(key), find)
    if file is not None:
        with open(file, "wb") as target:
            target.write(item.value)
    if as_json:
        print_json(_row(item))
    elif file is None and to_terminal():
        click.echo(printable(item.text))
    elif file is None:
        sys.stdout.buffer.write(item.value)


@click.command("set")
@_vm_argument
@click.argument("settings", metavar="KEY[=VALUE]...", nargs=-1, required=True)
@_pool_option
@click.option("--file", type=click.Path(), help="The value of the one KEY is in this file; - is standard input.")
@click.option("--label", default="", help="The program that owns the keys, to delete them by.")
@click.option("--acknowledged", type=float, metavar="S", help="Wait so many seconds until the guest acknowledged.")
@json_option
def set_(
    vm: str,
    settings: tuple[str, ...],
    pool: str | None,
    file: str | None,
    label: str,
    acknowledged: float | None,
    as_json: bool,
) -> None:
    """Set keys of VM, all or none; it is over when they are on the guest's disk."""
    pairs = _from_file(settings, file) if file is not None else dict(map(_setting, settings))
    chosen = _own(vm, pool)

    async def on_host(side: Exchange) -> int:
        revision = await side.set(pairs, chosen, label=label)
        for key in pairs if acknowledged is not None else ():
            await side.wait_acknowledged(key, revision, timeout=acknowledged)
        return revision

    if acknowledged is not None and vm == HERE:
        raise UsageError("--acknowledged is for the host")
    revision = _run(vm, on_host, lambda here: here.set(pairs, label=label))
    if as_json:
        print_json({"vm": vm, "pool": chosen.word, "keys": list(pairs), "revision": revision})


@click.command()
@_vm_argument
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@_pool_option
@click.option("--label", help='Instead of keys: all that this label owns; "" for all without a label.')
@json_option
def delete(vm: str, keys: tuple[str, ...], pool: str | None, label: str | None, as_json: bool) -> None:
    """Delete keys of VM, all or none."""
    if bool(keys) is (label is not None):
        raise UsageError("delete either keys or, by --label, what a label owns")
    chosen = _own(vm, pool)
    if label is not None:
        count = _run(vm, lambda side: side.delete_owned(label), lambda here: here.delete_owned(label))
    else:
        _run(vm, lambda side: side.delete(keys, chosen), lambda here: here.delete(keys))
        count = len(set(keys))
    if as_json:
        print_json({"vm": vm, "deleted": count})


@click.command()
@_vm_argument
@click.argument("key")
@click.option("--revision", type=int, metavar="N", help="Only as it was set at this revision, as list shows it.")
@json_option
def acknowledge(vm: str, key: str, revision: int | None, as_json: bool) -> None:
    """Tell the other side that the value of KEY was taken note of: of external in the guest, of guest on the host.

    `hvsock kvp set VM KEY=VALUE --acknowledged S` waits for it.
    """
    pool = own_pool(Side.HOST if vm == HERE else Side.GUEST)

    def meant(item: Item) -> Item:
        return item if revision is None else replace(item, revision=revision)

    async def on_host(side: Exchange) -> Item:
        item = meant(await side.get(key, pool))
        await side.acknowledge(item)
        return item

    def here(side: Local) -> Item:
        item = meant(side.get(key, pool))
        side.acknowledge(item)
        return item

    item = _run(vm, on_host, here)
    if as_json:
        print_json({"vm": vm, "pool": pool.word, "key": key, "revision": item.revision})


@click.command()
@_vm_argument
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@_pool_option
@json_option
def watch(vm: str, keys: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """Print what there is, then every change, until interrupted; with --json one line each.

    At most 50 changes a second are shown. Where a guest makes more, those of a key that changes again meanwhile
    are left out, its last value is not, and standard error says so.
    """

    def tell(change: Change) -> None:
        if change.item is not None and (not keys or change.item.key in keys):
            _tell(change, change.item, as_json)

    def here(side: Local) -> None:
        for change in side.watch(*_pools(pool)):
            tell(change)

    async def on_host(side: Exchange) -> None:
        def slow() -> None:
            say(
                f"{vm} changes keys faster than they are shown; of one that changes again, the last value is shown"
            )

        async with (
            contextlib.aclosing(side.watch(*_pools(pool))) as told,
            contextlib.aclosing(paced(told, slow)) as changes,
        ):
            async for change in changes:
                tell(change)

    _run(vm, on_host, here)


def _tell(change: Change, item: Item, as_json: bool) -> None:
    if as_json:
        print_json({"change": change.kind.name.lower(), **_row(item)}, one_line=True)
    elif change.kind is ChangeKind.DELETED:
        click.echo(f"{item.pool.word}  {printable(item.key)}  deleted")
    else:
        mark = "  (acknowledged)" if item.is_acknowledged else ""
        click.echo(f"{item.pool.word}  {printable(item.key)}  {shown(item)}{mark}")
    sys.stdout.flush()


def _run(vm: str, on_host: Callable[[Exchange], Awaitable[Any]], here: Callable[[Local], Any]) -> Any:
    """What `here` returns in a guest, and `on_host` on the host."""
    if vm == HERE:
        return here(local(click.get_current_context().obj))

    async def ask() -> Any:
        async with exchange(vm) as side:
            return await on_host(side)

    with asking(vm, KEY_VALUE_PAIR_EXCHANGE.name):
        return asyncio.run(ask())


def _pools(word: str | None) -> tuple[Pool, ...]:
    return () if word is None else (pool_of(word),)


def _own(vm: str, word: str | None) -> Pool:
    """The pool to change."""
    own = own_pool(Side.GUEST if vm == HERE else Side.HOST)
    chosen = own if word is None else pool_of(word)
    if vm == HERE and chosen is not own:
        raise UsageError(f"in a guest, the pool {own.word} alone can be changed")
    return chosen


def _setting(text: str) -> tuple[str, bytes]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!a} is no setting: give KEY=VALUE, or KEY with --file")
    return key, os.fsencode(value)


def _from_file(settings: tuple[str, ...], file: str) -> dict[str, bytes]:
    if len(settings) != 1:
        raise UsageError("--file is the value of one KEY")
    if file == "-":
        value = sys.stdin.buffer.read(MAX_VALUE_BYTES + 1)
    else:
        with open(file, "rb") as stream:
            value = stream.read(MAX_VALUE_BYTES + 1)
    if len(value) > MAX_VALUE_BYTES:
        raise UsageError(f"{file} has more than {size_text(MAX_VALUE_BYTES)}, the most a value can have; copy it")
    return {settings[0]: value}


def _row(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"pool": item.pool.word, "key": item.key}
    try:
        row["value"] = item.value.decode()
    except UnicodeDecodeError:
        row["value_base64"] = base64.b64encode(item.value).decode()
    return {
        **row,
        "owner": item.owner,
        "revision": item.revision,
        "acknowledged": item.acknowledged or None,
    }


def _acknowledged(item: Item) -> str:
    return "yes" if item.is_acknowledged else "no" if item.acknowledged == 0 else f"at {item.acknowledged}"


def shown(item: Item) -> str:
    """A value in short, for one line of a terminal."""
    head = item.value[: 4 * SHOWN_CHARACTERS].decode("utf-8", "backslashreplace")
    text = printable(head)
    if len(item.value) <= 4 * SHOWN_CHARACTERS and len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}... ({size_text(len(item.value))})"
