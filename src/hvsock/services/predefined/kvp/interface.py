"""What goes over the wire: the messages and operations of data exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final

from hvsock.constants import KEY_VALUE_PAIR_EXCHANGE
from hvsock.services.caller import Caller
from hvsock.services.service import Service, call, download
from hvsock.services.types import Limit, UInt32, UInt64

from .pools import MAX_KEY_BYTES, MAX_LABEL_BYTES, MAX_SET_BYTES, MAX_SET_KEYS, MAX_VALUE_BYTES, Pool

Key = Annotated[str, Limit(MAX_KEY_BYTES)]
Value = Annotated[bytes, Limit(MAX_VALUE_BYTES)]
Label = Annotated[str, Limit(MAX_LABEL_BYTES)]
Owner = Annotated[str, Limit(MAX_LABEL_BYTES + 16)]

SET_BYTES: Final = MAX_SET_BYTES + MAX_SET_KEYS * 64 + 4096
ITEM_BYTES: Final = MAX_VALUE_BYTES + MAX_KEY_BYTES + 4096
"""Most bytes of a message: what is in it, and protobuf's and the other fields' share."""


@dataclass(frozen=True, slots=True)
class Item:
    """A key with its value.

    Attributes:
        pool: where it is.
        key: its key.
        value: its value.
        owner: who set it: "host" or "guest", or that with a program's label behind a slash.
        revision: when it was set.
        acknowledged: up to which revision the other side acknowledged it; 0 for never.
        changed: when it was set, or acknowledged.
    """

    pool: Pool
    key: Key
    value: Value
    owner: Owner
    revision: UInt64
    acknowledged: UInt64
    changed: UInt64

    @property
    def text(self) -> str:
        """The value as text; bytes that are no UTF-8 are shown as ``\\xNN``."""
        return self.value.decode("utf-8", "backslashreplace")

    @property
    def is_acknowledged(self) -> bool:
        """Whether the other side took note of this very value."""
        return self.acknowledged >= self.revision


@dataclass(frozen=True, slots=True)
class KeyQuestion:
    """Asks for one key."""

    pool: Pool
    key: Key


@dataclass(frozen=True, slots=True)
class PoolQuestion:
    """Asks for all keys of some pools; of all pools where none is named."""

    pools: Annotated[list[Pool], Limit(8)] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key and what it is set to."""

    key: Key
    value: Value


@dataclass(frozen=True, slots=True)
class SetQuestion:
    """Sets keys, all or none.

    Attributes:
        pool: external or auto_external.
        settings: the keys.
        label: of the program that owns them; empty for the host itself.
        replace: whether all other keys of the pool go.
    """

    pool: Pool
    settings: Annotated[list[Setting], Limit(MAX_SET_KEYS)]
    label: Label = ""
    replace: bool = False


@dataclass(frozen=True, slots=True)
class DeleteQuestion:
    """Deletes keys, all or none."""

    pool: Pool
    keys: Annotated[list[Key], Limit(MAX_SET_KEYS)]


@dataclass(frozen=True, slots=True)
class OwnedQuestion:
    """Deletes all keys of an owner: a label, "" for the host itself, None for the host and all its labels."""

    label: Label | None = None


@dataclass(frozen=True, slots=True)
class AcknowledgeQuestion:
    """Says that the value of a key, as it was set at a revision, was taken note of."""

    pool: Pool
    key: Key
    revision: UInt64


@dataclass(frozen=True, slots=True)
class Done:
    """A change is on the guest's disk.

    Attributes:
        revision: the change's.
        count: how many keys it was about.
    """

    revision: UInt64
    count: UInt32


@dataclass(frozen=True, slots=True)
class WatchQuestion:
    """Asks for all changes after a revision.

    Attributes:
        epoch: whose revision it is, as the answers say it; "" to be told everything there is first.
        revision: the `resume` of the last answer.
        pools: of some pools; of all where none is named.
    """

    epoch: Annotated[str, Limit(64)] = ""
    revision: UInt64 = 0
    pools: Annotated[list[Pool], Limit(8)] = field(default_factory=list)


class ChangeKind(IntEnum):
    """What a change is."""

    CURRENT = 0
    """None: all that there was is told."""
    SET = 1
    """A key was set, or acknowledged."""
    DELETED = 2
    """A key was deleted."""
    RESET = 3
    """What is known is void; all that there is follows."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        kind: what it is.
        item: what it is about, without its value where it was deleted; None for CURRENT and RESET.
        epoch: whose revisions these are.
        resume: the revision to ask from next time, so that nothing is lost.
    """

    kind: ChangeKind
    item: Item | None
    epoch: Annotated[str, Limit(64)]
    resume: UInt64


class KeyValueExchange(Service, name=KEY_VALUE_PAIR_EXCHANGE.name, port=KEY_VALUE_PAIR_EXCHANGE.port, short="kvp"):
    """The service, as the host asks for it; see :class:`.guest.GuestExchange` for who answers."""

    @call(idempotent=True, max_bytes=ITEM_BYTES)
    async def get(self, caller: Caller, question: KeyQuestion) -> Item:
        """One key of any pool."""
        raise NotImplementedError

    @download(max_bytes=ITEM_BYTES)
    async def enumerate(self, caller: Caller, question: PoolQuestion) -> AsyncIterator[Item]:
        """All keys of pools; those of one pool are of one moment."""
        raise NotImplementedError
        yield

    @call(max_bytes=SET_BYTES)
    async def set(self, caller: Caller, question: SetQuestion) -> Done:
        """Set keys of a pool of the host's, all or none; the answer comes when they are on the guest's disk."""
        raise NotImplementedError

    @call(max_bytes=SET_BYTES)
    async def delete(self, caller: Caller, question: DeleteQuestion) -> Done:
        """Delete keys of a pool of the host's, all or none."""
        raise NotImplementedError

    @call(idempotent=True)
    async def delete_owned(self, caller: Caller, question: OwnedQuestion) -> Done:
        """Delete what the host, or a program of it, has set."""
        raise NotImplementedError

    @call(idempotent=True)
    async def acknowledge(self, caller: Caller, question: AcknowledgeQuestion) -> Done:
        """Say that a value of the guest's was taken note of."""
        raise NotImplementedError

    @download(max_bytes=ITEM_BYTES)
    async def watch(self, caller: Caller, question: WatchQuestion) -> AsyncIterator[Change]:
        """All changes from a revision on, without end.

        Of a key that changed several times before it was told, the last state alone is told.
        """
        raise NotImplementedError
        yield
