"""One connection, in the process that it has of its own: the hand-over of keys where there is one, and SSH.

All that a connection needs is loaded with this module, in the keeper: once for all connections, and before their
processes become users who may not read it.
"""

from __future__ import annotations

import asyncio
import codecs
import concurrent.futures.thread  # noqa: F401 - asyncio loads it late
import logging
import sys
from socket import MSG_PEEK, socket
from typing import Final

import asyncssh
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hvsock.errors import HvsockError

from .guestkeys import GuestKeys
from .handover import FIRST_BYTE, GuestIdentity, parse_question, read_line, refusal
from .keeper import Slots
from .order import Order
from .server import serve
from .users import own_user

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

HANDOVER_SECONDS: Final = 60.0
"""How long a hand-over may take; it is a line each way."""


def _warm_up() -> None:
    """Use what a connection uses: Python loads codecs, and OpenSSL algorithms, by their first use."""
    for name in ("ascii", "idna"):
        codecs.lookup(name)
    key = asyncssh.generate_private_key("ssh-ed25519")
    asyncssh.import_private_key(key.export_private_key())
    key.convert_to_public().verify(b"", key.sign(b"", b"ssh-ed25519"))
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    one.exchange(other.public_key())


_warm_up()


async def attend(connection: socket, tie: socket, order: Order, slots: Slots) -> None:
    """Serve a connection until it ends, or the agent does not want it any more.

    Args:
        connection: the socket, which has something to read, and which this owns.
        tie: ends when the agent does, or wants this to end.
        order: how.
        slots: for sessions.
    """
    for sock in (connection, tie):
        sock.setblocking(False)
    working = asyncio.create_task(_serve(connection, order, slots))
    unwanted = asyncio.create_task(asyncio.get_running_loop().sock_recv(tie, 1))
    await asyncio.wait({working, unwanted}, return_when=asyncio.FIRST_COMPLETED)
    for task in (working, unwanted):
        task.cancel()
    await asyncio.wait({working, unwanted})
    if not working.cancelled() and (error := working.exception()) is not None:
        if not isinstance(error, OSError):
            raise error
        log.info("direct: a connection failed: %s", error)


async def _serve(connection: socket, order: Order, slots: Slots) -> None:
    try:
        keys = GuestKeys(order.folder)
        key = keys.authorized()
        if connection.recv(1, MSG_PEEK) == FIRST_BYTE:
            async with asyncio.timeout(HANDOVER_SECONDS):
                key = await _hand_over(connection, keys)
    except TimeoutError:
        log.info("direct: a connection did not finish its hand-over, and is closed")
        return
    except HvsockError as error:
        log.warning("direct: %s", error)
        await asyncio.get_running_loop().sock_sendall(connection, refusal(str(error)))
        return
    await serve(connection, keys.private, key, order.policy, slots)


async def _hand_over(connection: socket, keys: GuestKeys) -> str:
    key = parse_question(await read_line(connection))
    keys.authorize(key)
    answer = GuestIdentity(keys.public, keys.kept, own_user().name)
    await asyncio.get_running_loop().sock_sendall(connection, answer.line())
    return key
