"""The device: the process that gives one VM its sockets, between QEMU (vhost-user) and the fabric.

It drives the pure machines of :mod:`hvsock.virtio` on real descriptors. To the broker it is one more client: it
connects where its guest connects, and its listener takes what connects to the VM.
"""
