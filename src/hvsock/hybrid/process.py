"""A VM of the fabric as a VMM of another kind would show it, as a process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from hvsock.addresses import VmId
from hvsock.errors import UsageError
from hvsock.fabric import paths
from hvsock.fabric.door import Door
from hvsock.fabric.reactor import Reactor, ending_by_signals
from hvsock.relay.following import Follower
from hvsock.relay.process import connections_that_fit
from hvsock.relay.relay import Relay

from .following import LOOK_SECONDS, Beside
from .listening import OWNER_MODE, listen_at
from .profiles import HVSOCK, Profile
from .serving import Server

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


def serve(
    vm_id: VmId,
    path: str,
    on_ready: Callable[[], None],
    *,
    profile: Profile = HVSOCK,
    mode: int = OWNER_MODE,
) -> None:
    """Serve a VM at a path until SIGTERM or SIGINT: its services there, and those of its host beside it.

    Args:
        vm_id: the VM, a child of the partition that this process speaks for.
        path: where programs of the host connect.
        on_ready: called once they can.
        profile: the VMM whose ways it has.
        mode: the mode of the socket at `path`: who may connect.

    Raises:
        UsageError: the profile has no handshake.
        OSError: the path cannot be listened at; EADDRINUSE: somebody does.
        StateError: what is there is no socket.
        BusyError: somebody holds a lock on its folder.
    """
    if not profile.has_handshake:
        raise UsageError(f"{profile.name} has no handshake, and a path for each port: see `hvsock forward`")
    partition = paths.partition_folder()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen_at(path, mode=mode))
        reactor = Reactor()
        stack.callback(reactor.close)
        most = max(1, connections_that_fit() // 2)  # for each direction
        relay = Relay(reactor, most)
        stack.callback(relay.close)
        server = Server(reactor, vm_id, partition, profile, most)
        stack.callback(server.close)
        listener.sock.setblocking(False)
        stack.callback(Door(reactor, listener.sock, server.admit).close)
        follower = Follower(Beside(path, vm_id, profile), partition, reactor, relay, LOOK_SECONDS)
        stack.callback(follower.stop)
        stack.enter_context(ending_by_signals(reactor, reactor.stop))
        follower.look()
        follower.start()
        on_ready()
        reactor.run()
