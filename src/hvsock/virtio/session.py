"""The back end's side of vhost-user as a state machine (pure): messages in, actions out.

Whoever holds the socket performs the actions of every message in their order; :class:`StopQueue` is followed
by a call of :meth:`Session.stopped`, whose actions come next. Descriptors are numbers here: the session
never reads, maps or closes one. The kick, call and err descriptors stay the session's, which lends them
until it names them in a :class:`Close`; those of :class:`MapMemory` are for the performer to close.

A queue runs while it has a size, addresses, memory and a kick descriptor, and is enabled. It stops at
GET_VRING_BASE, which takes the kick descriptor away, and when it is disabled. Where something changes under
a running queue (memory, its kick or err descriptor), it is stopped and started again where it was.

A front end that pauses its guest stops the queues and starts them later with the bases that it was told; one
whose guest has reset the device starts them anew. The session tells the two apart by the bases, and says
:class:`Reset` before the first queue starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from hvsock.errors import ProtocolError

from . import vhost_user
from .vhost_user import Feature, Flag, MemoryRegion, ProtocolFeature, Request, RingAddresses
from .virtqueue import MAX_QUEUE_SIZE

RX: Final = 0
"""Index of the queue that the device fills."""
TX: Final = 1
"""Index of the queue that the guest fills."""
PROTOCOL_FEATURES: Final = (
    ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.STATUS
)
"""What the back end offers; QEMU refuses one without CONFIG."""
_WITH_REPLY = frozenset(request for request in Request if request.name.startswith("GET_"))
_ACCEPTED = 0
_REFUSED = 1


class Reply(NamedTuple):
    """Send these bytes."""

    data: bytes


class MapMemory(NamedTuple):
    """Map these regions in place of what was mapped, each from its descriptor; close the descriptors."""

    regions: tuple[tuple[MemoryRegion, int], ...]


class StartQueue(NamedTuple):
    """Serve this queue.

    Attributes:
        queue: which, by index.
        size: number of descriptors.
        base: index of the first available chain to take.
        addresses: where it is.
        event_idx: whether EVENT_IDX was negotiated.
        kick: the eventfd by which the guest says that there are chains.
        call: the eventfd that interrupts the guest; None: the guest polls.
        err: the eventfd that tells the front end of an error; None: it wants no word.
    """

    queue: int
    size: int
    base: int
    addresses: RingAddresses
    event_idx: bool
    kick: int
    call: int | None
    err: int | None


class StopQueue(NamedTuple):
    """Stop serving this queue, and call :meth:`Session.stopped` with its next available index."""

    queue: int


class SetCall(NamedTuple):
    """Interrupt the guest by this eventfd from now on, for this running queue; None: it polls."""

    queue: int
    call: int | None


class Reset(NamedTuple):
    """The guest starts the device anew: no connection of it is left."""


class Close(NamedTuple):
    """Close these descriptors; nothing uses them any more."""

    descriptors: tuple[int, ...]


class Note(NamedTuple):
    """Say this to whoever reads the log; the session goes on."""

    text: str


class End(NamedTuple):
    """End the session: the front end broke the protocol, and cannot be told so otherwise."""

    text: str


Action = Reply | MapMemory | StartQueue | StopQueue | SetCall | Reset | Close | Note | End


@dataclass(slots=True)
class _Vring:
    """What the front end has said of one queue; `stopped_at` is where it stopped, and None before that."""

    size: int = 0
    base: int = 0
    base_is_new: bool = False
    stopped_at: int | None = None
    addresses: RingAddresses | None = None
    kick: int | None = None
    call: int | None = None
    err: int | None = None
    enabled: bool = False
    running: bool = False


class Session:
    """One front end's session.

    Attributes:
        features: what the guest has negotiated, :class:`~.vhost_user.Feature` bits; 0 before it has.
        protocol_features: what the front end has negotiated.
    """

    def __init__(
        self,
        features: int,
        config: bytes,
        *,
        protocol_features: int = PROTOCOL_FEATURES,
        queues: int = 2,
        max_queue_size: int = MAX_QUEUE_SIZE,
    ) -> None:
        """A session that has just begun.

        Args:
            features: what to offer to the guest.
            config: the device's config space.
            protocol_features: what to offer to the front end.
            queues: how many queues the front end may set up; some pass the event queue too.
            max_queue_size: most descriptors in a queue.
        """
        self.features = 0
        self.protocol_features = 0
        self._offered = int(features)  # a flag's own ~ leaves out bits that have no name
        self._config = config
        self._protocol_offered = int(protocol_features)
        self._max_queue_size = max_queue_size
        self._vrings = [_Vring() for _ in range(queues)]
        self._has_memory = False
        self._has_said_reset = False
        self._status = 0
        self._stopping: set[int] = set()
        self._change: Callable[[], list[Action]] = list
        self._acknowledgement: list[Action] = []

    def handle(self, message: bytes, descriptors: Sequence[int]) -> list[Action]:
        """What to do about one message, header and payload, and the descriptors that came with it."""
        self._acknowledgement = []
        try:
            request, flags, payload = vhost_user.parse(message)
        except ProtocolError as error:
            return [*_close(descriptors), End(str(error))]
        # what has a reply of its own is not acknowledged besides
        wants_word = (
            flags & Flag.NEED_REPLY
            and self.protocol_features & ProtocolFeature.REPLY_ACK
            and request not in _WITH_REPLY
        )
        try:
            known = Request(request)
        except ValueError:
            word = [_acknowledge(request, _REFUSED)] if wants_word else []
            return [*_close(descriptors), *word, Note(f"vhost-user request {request} is not for this device")]
        try:
            actions = self._perform(known, payload, descriptors)
        except ProtocolError as error:
            text = f"{known.name} refused: {error}"
            if wants_word:
                return [*_close(descriptors), _acknowledge(request, _REFUSED), Note(text)]
            return [*_close(descriptors), End(text)]
        if wants_word:
            self._acknowledgement = [_acknowledge(request, _ACCEPTED)]
        return actions if self._stopping else self._finish(actions)

    def stopped(self, index: int, next_available: int) -> list[Action]:
        """What to do once a queue that a :class:`StopQueue` named has stopped.

        Args:
            index: which queue.
            next_available: index of the next chain that it would have taken, 16 bits.
        """
        vring = self._vrings[index]
        vring.running = False
        vring.base = vring.stopped_at = next_available
        self._has_said_reset = False
        self._stopping.remove(index)
        return [] if self._stopping else self._finish(self._change())

    def close(self) -> tuple[int, ...]:
        """Ends the session; returns the descriptors that it holds, to be closed once no queue is served."""
        held = [one for vring in self._vrings for one in (vring.kick, vring.call, vring.err) if one is not None]
        self._vrings = [_Vring() for _ in self._vrings]
        return tuple(held)

    def _perform(self, request: Request, payload: bytes, descriptors: Sequence[int]) -> list[Action]:
        """Does what the request asks for, or changes nothing and raises ProtocolError."""
        match request:
            case Request.SET_MEM_TABLE:
                return self._set_memory(payload, descriptors)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                return self._set_vring_descriptor(request, payload, descriptors)
        if descriptors:
            raise ProtocolError(f"{len(descriptors)} descriptors came with it, and none belongs to it")
        match request:
            case Request.SET_FEATURES:
                self._set_features(vhost_user.parse_u64(payload))
            case Request.SET_PROTOCOL_FEATURES:
                features = vhost_user.parse_u64(payload)
                _require_offered(features, self._protocol_offered)
                self.protocol_features = features
            case Request.SET_VRING_NUM | Request.SET_VRING_ADDR | Request.SET_VRING_BASE:
                self._set_up_vring(request, payload)
            case Request.SET_VRING_ENABLE:
                return self._set_enabled(*vhost_user.parse_vring_state(payload))
            case Request.GET_VRING_BASE:
                index, _ = vhost_user.parse_vring_state(payload)
                self._vring(index)
                return self._after_stop([index], lambda: self._take_kick_away(index))
            case Request.SET_STATUS:
                return self._set_status(vhost_user.parse_u64(payload))
            case Request.GET_CONFIG:
                return [_reply(request, self._read_config(*vhost_user.parse_config(payload)))]
            case Request.SET_CONFIG:
                raise ProtocolError("the config space of this device is read-only")
            case _:
                if payload:
                    raise ProtocolError(f"a payload of {len(payload)} bytes, not 0")
                return self._perform_without_payload(request)
        return []

    def _perform_without_payload(self, request: Request) -> list[Action]:
        match request:
            case Request.GET_FEATURES:
                value = self._offered
            case Request.GET_PROTOCOL_FEATURES:
                value = self._protocol_offered
            case Request.GET_QUEUE_NUM:
                value = len(self._vrings)
            case Request.GET_STATUS:
                value = self._status
            case _:  # SET_OWNER: whoever has the socket is the owner
                return []
        return [_reply(request, vhost_user.pack_u64(value))]

    def _set_features(self, features: int) -> None:
        _require_offered(features, self._offered)
        if features != self.features and any(vring.running for vring in self._vrings):
            raise ProtocolError("features do not change while a queue runs")
        self.features = features
        if not features & Feature.PROTOCOL_FEATURES:
            for vring in self._vrings:  # there is no SET_VRING_ENABLE then
                vring.enabled = True

    def _set_memory(self, payload: bytes, descriptors: Sequence[int]) -> list[Action]:
        regions = vhost_user.parse_memory_table(payload)
        if len(regions) != len(descriptors):
            raise ProtocolError(f"{len(regions)} regions of memory with {len(descriptors)} descriptors")
        self._has_memory = True
        mapping = MapMemory(tuple(zip(regions, descriptors, strict=True)))
        return self._after_stop(range(len(self._vrings)), lambda: [mapping])

    def _set_up_vring(self, request: Request, payload: bytes) -> None:
        """Size, addresses or base of a queue that does not run."""
        if request is Request.SET_VRING_ADDR:
            index, addresses = vhost_user.parse_vring_addresses(payload)
            number = 0
        else:
            index, number = vhost_user.parse_vring_state(payload)
        vring = self._vring(index)
        if vring.running:
            raise ProtocolError(f"queue {index} is running")
        if request is Request.SET_VRING_ADDR:
            if not self._has_memory:
                raise ProtocolError("addresses of a queue before there is memory")
            vring.addresses = addresses
        elif request is Request.SET_VRING_NUM:
            if not 0 < number <= self._max_queue_size or number & (number - 1):
                raise ProtocolError(
                    f"a queue of {number} descriptors: a power of two, at most {self._max_queue_size}"
                )
            vring.size = number
        else:
            if number > 0xFFFF:
                raise ProtocolError(f"a queue's base of {number}")
            vring.base, vring.base_is_new = number, True

    def _set_vring_descriptor(self, request: Request, payload: bytes, descriptors: Sequence[int]) -> list[Action]:
        """The kick, call or err descriptor of a queue."""
        index, attached = vhost_user.parse_vring_descriptor(payload)
        vring = self._vring(index)
        if len(descriptors) != attached:
            raise ProtocolError(f"{len(descriptors)} descriptors for queue {index} and not {int(attached)}")
        descriptor = descriptors[0] if attached else None
        if request is Request.SET_VRING_CALL:
            old, vring.call = vring.call, descriptor
            return [*([SetCall(index, descriptor)] if vring.running else []), *_close([old])]
        if request is Request.SET_VRING_ERR:
            old, vring.err = vring.err, descriptor
        elif attached:
            old, vring.kick = vring.kick, descriptor
        else:
            raise ProtocolError(f"queue {index} without a kick descriptor would have to be polled")
        return self._after_stop([index], lambda: _close([old]))

    def _set_enabled(self, index: int, enabled: int) -> list[Action]:
        vring = self._vring(index)
        if enabled > 1:
            raise ProtocolError(f"queue {index} is enabled by 1 and disabled by 0, not by {enabled}")
        vring.enabled = bool(enabled)
        return [] if enabled else self._after_stop([index], list)

    def _set_status(self, status: int) -> list[Action]:
        self._status = status
        return [] if status else self._after_stop(range(len(self._vrings)), self._disable_all)

    def _disable_all(self) -> list[Action]:
        for vring in self._vrings:
            vring.enabled = False
        return []

    def _take_kick_away(self, index: int) -> list[Action]:
        """The end of GET_VRING_BASE."""
        vring = self._vrings[index]
        old, vring.kick = vring.kick, None
        base = vhost_user.pack_vring_state(index, vring.base)
        return [*_close([old]), _reply(Request.GET_VRING_BASE, base)]

    def _read_config(self, offset: int, asked: bytes) -> bytes:
        """The payload of a reply to GET_CONFIG; an empty one says that there are no such bytes."""
        end = offset + len(asked)
        return vhost_user.pack_config(offset, self._config[offset:end]) if end <= len(self._config) else b""

    def _vring(self, index: int) -> _Vring:
        if index >= len(self._vrings):
            raise ProtocolError(f"queue {index} of {len(self._vrings)}")
        return self._vrings[index]

    def _after_stop(self, indexes: Iterable[int], change: Callable[[], list[Action]]) -> list[Action]:
        """Makes the change now, or as soon as those of these queues have stopped that are running."""
        running = [index for index in indexes if self._vrings[index].running]
        if not running:
            return change()
        self._stopping, self._change = set(running), change
        return [StopQueue(index) for index in running]

    def _finish(self, actions: list[Action]) -> list[Action]:
        """These actions, then starts of what can run now, then the acknowledgement."""
        starts: list[Action] = []
        for index, vring in enumerate(self._vrings):
            if vring.running or not vring.enabled or not vring.size:
                continue
            if vring.addresses is None or vring.kick is None:
                continue
            if not self._has_said_reset and self._is_anew():
                self._has_said_reset = True
                starts.append(Reset())
            vring.running, vring.base_is_new = True, False
            event_idx = bool(self.features & Feature.EVENT_IDX)
            starts.append(
                StartQueue(
                    index,
                    vring.size,
                    vring.base,
                    vring.addresses,
                    event_idx,
                    vring.kick,
                    vring.call,
                    vring.err,
                )
            )
        return [*actions, *starts, *self._acknowledgement]

    def _is_anew(self) -> bool:
        """Whether the front end has set a queue's base to something else than where the queue stopped.

        Queues that all begin at 0 are new too. One alone may have come there by its 16 bits.
        """
        told = [vring for vring in self._vrings if vring.base_is_new]
        return any(vring.base != vring.stopped_at for vring in told) or (
            len(told) == len(self._vrings) and not any(vring.base for vring in told)
        )


def _require_offered(features: int, offered: int) -> None:
    if features & ~offered:
        raise ProtocolError(f"features {features & ~offered:#x} were not offered")


def _close(descriptors: Iterable[int | None]) -> list[Action]:
    """The action that closes these descriptors, if there are any."""
    there = tuple(one for one in descriptors if one is not None)
    return [Close(there)] if there else []


def _reply(request: int, payload: bytes) -> Reply:
    return Reply(vhost_user.pack_reply(request, payload))


def _acknowledge(request: int, result: int) -> Reply:
    return _reply(request, vhost_user.pack_u64(result))
