"""Disks over services: the kernel's own NBD client reads and writes what a peer serves by NBD.

- :mod:`.handshake`: what is said before the first block (pure).
- :mod:`.disk`: one device of the kernel, /dev/nbd0 and so on.
- :mod:`.process`: a connection and a device, put together.

The kernel takes streams of TCP and AF_UNIX for that and refuses all others, AF_VSOCK among them (EINVAL; earlier
kernels took what could hang them). So its end is one of a pair of AF_UNIX sockets, and what goes through the other
is relayed to the connection.
"""
