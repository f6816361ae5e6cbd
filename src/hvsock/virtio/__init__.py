"""virtio-vsock as pure machines: guest memory, virtqueues, vhost-user, packets, credit, connections, the muxer.

Nothing in here does input or output, or knows a clock: :mod:`hvsock.device` drives it on real descriptors.
Guest memory is shared with a running guest that may be hostile: what is read from it is read once, and checked.
"""
