"""The device: the process that gives one VM its sockets, between QEMU (vhost-user) and the fabric.

It drives the pure machines of :mod:`hvsock.virtio` on real descriptors. To the broker it is one more client: it
connects where its guest connects, and its listener takes what connects to the VM.

- :mod:`.process`, :mod:`.rights`: the process, and what it gives up.
- :mod:`.device`: everything joined, and the loop that moves packets.
- :mod:`.frontend`: QEMU's side.
- :mod:`.connecting`, :mod:`.offering`: the fabric's side, from the guest and to it.
- :mod:`.ends`: one connection's socket, and its end mark.
- :mod:`.reporting`: the counters.
"""
