"""Numbers and well-known identifiers of Hyper-V sockets, each with its source.

"header" is hvsocket.h of the Windows SDK, "ws2def" is ws2def.h. Values of AF_HYPERV that CPython
has carry CPython's names; the others carry the header's.

The values of :data:`HV_PROTOCOL_RAW` and of the ``HVSOCKET_*`` options collide with numbers of Linux:
``SOL_SOCKET`` is 1 there and ``SO_ERROR`` is 4, just like ``HVSOCKET_CONNECTED_SUSPEND``. They are
therefore integers of a type of their own, and the socket class tells them apart by that type.
"""

from enum import IntEnum
from typing import NamedTuple


class ProtocolLevel(IntEnum):
    """The protocol of an AF_HYPERV socket, which is the level of its options too (header)."""

    HV_PROTOCOL_RAW = 1


class HvsocketOption(IntEnum):
    """Options at level HV_PROTOCOL_RAW; every value is a ULONG (header)."""

    HVSOCKET_CONNECT_TIMEOUT = 0x01
    """Milliseconds until a connect gives up with ETIMEDOUT."""
    HVSOCKET_CONTAINER_PASSTHRU = 0x02
    """Non-zero: a container in a VM counts as a child of the VM's parent (old headers only)."""
    HVSOCKET_CONNECTED_SUSPEND = 0x04
    """Non-zero: the connection survives a pause of the VM."""
    HVSOCKET_HIGH_VTL = 0x08
    """Non-zero: connect to the guest's VTL 2."""


AF_HYPERV = 34
"""Address family (ws2def). The descriptor underneath is AF_UNIX on Linux."""

HV_PROTOCOL_RAW = ProtocolLevel.HV_PROTOCOL_RAW
HVSOCKET_CONNECT_TIMEOUT = HvsocketOption.HVSOCKET_CONNECT_TIMEOUT
HVSOCKET_CONTAINER_PASSTHRU = HvsocketOption.HVSOCKET_CONTAINER_PASSTHRU
HVSOCKET_CONNECTED_SUSPEND = HvsocketOption.HVSOCKET_CONNECTED_SUSPEND
HVSOCKET_HIGH_VTL = HvsocketOption.HVSOCKET_HIGH_VTL

HVSOCKET_CONNECT_TIMEOUT_MAX = 300_000
"""Milliseconds; the most that HVSOCKET_CONNECT_TIMEOUT takes (header)."""
HVSOCKET_CONNECT_TIMEOUT_DEFAULT = 2_000
"""Milliseconds; what a connect waits when the option was not set (as Windows and Linux do)."""
ANSWER_GRACE_SECONDS = 2.0
"""Seconds that a connect waits past its time-out for whoever keeps that: the broker, a VMM, a device, or Windows
(hvsock's own)."""

OPERATION_PATTERN = r"(?:[a-z0-9_]{1,50}\.){0,5}(?:[a-z0-9_]{1,50}|\*)"
"""What names operations of services in policies: kvp.set, or kvp.* (hvsock's own)."""

HVSOCKET_ADDRESS_FLAG_PASSTHRU = 0x00000001
"""Flag of HVSOCKET_ADDRESS_INFO (header)."""

SOCKADDR_HV_BYTES = 36
"""Size of SOCKADDR_HV: family, reserved, VmId, ServiceId (header)."""

VSOCK_PORT_MAX = 0xFFFFFFFF
"""Largest AF_VSOCK port. The header says 0x7FFFFFFF; Linux dropped that limit."""

VSOCK_CID_MAX = 0xFFFFFFFF
"""Largest AF_VSOCK context id (linux/vm_sockets.h)."""
VSOCK_CID_LOCAL = 1
"""The own machine: VMADDR_CID_LOCAL (linux/vm_sockets.h)."""
VSOCK_CID_HOST = 2
"""The host of a virtual machine: VMADDR_CID_HOST (linux/vm_sockets.h)."""
VSOCK_CID_ANY = VSOCK_CID_MAX
"""Bind: any context id: VMADDR_CID_ANY (linux/vm_sockets.h). A guest of Hyper-V reads it as its own, too."""
VSOCK_RESERVED_CIDS = (0, VSOCK_CID_LOCAL, VSOCK_CID_HOST, VSOCK_CID_ANY)
"""Context ids that no virtual machine has (virtio 1.3, 5.10.4)."""

VSOCK_BROKER_PORT = 0x4856_5342
"""AF_VSOCK port of the host on which a device answers calls to the broker ("HVSB"; hvsock's own)."""
GUEST_ECHO_PORT = 2762
"""AF_VSOCK port on which hvsock.vm.guest echoes: the one after the original documentation's example."""


class SessionService(NamedTuple):
    """An in-box service of the original's, of PowerShell Direct.

    Attributes:
        id: its ServiceId.
        name: its friendly name.
    """

    id: str
    name: str


VM_SESSION_SERVICE = SessionService("999e53d4-3d5c-4c3e-8779-bed06ec056e1", "VM Session Service")
"""The broker, which a client connects to first (PowerShell, RemoteSessionHyperVSocket.cs)."""
VM_SESSION_SERVICE_2 = SessionService("a5201c21-2770-4c11-a68e-f182edb29220", "VM Session Service-2")
"""The session (same source)."""
SESSION_SERVICES = (VM_SESSION_SERVICE, VM_SESSION_SERVICE_2)
"""Both. Every host of the original lists them from the start."""


class IntegrationService(NamedTuple):
    """An in-box service of hvsock's own.

    Attributes:
        port: its AF_VSOCK port; its ServiceId is the one of the vsock template for it.
        name: its friendly name, that of the original's service with the same meaning.
        enabled: whether it is enabled where no operator said anything.
    """

    port: int
    name: str
    enabled: bool = True


HEARTBEAT = IntegrationService(5180, "Heartbeat")
SHUTDOWN = IntegrationService(5181, "Shutdown")
TIME_SYNCHRONIZATION = IntegrationService(5182, "Time Synchronization")
KEY_VALUE_PAIR_EXCHANGE = IntegrationService(5183, "Key-Value Pair Exchange")
VSS = IntegrationService(5184, "VSS")
GUEST_SERVICE_INTERFACE = IntegrationService(5185, "Guest Service Interface", enabled=False)
DIRECT = IntegrationService(5186, "Direct")
GUEST_AGENT = IntegrationService(5187, "Guest Agent")

INTEGRATION_SERVICES = (
    *(HEARTBEAT, SHUTDOWN, TIME_SYNCHRONIZATION, KEY_VALUE_PAIR_EXCHANGE, VSS),
    *(GUEST_SERVICE_INTERFACE, DIRECT, GUEST_AGENT),
)
"""All of them. They are protocols of hvsock's own with the meaning of the originals, which are VMBus channels
under GUIDs of their own; those GUIDs are not used here. What is off by default is so in the original, too."""
