"""The hybrid transport: Hyper-V sockets over the Unix sockets of VMMs.

- :mod:`.socket`: the class, with the interface of the fabric's.
- :mod:`.greeting`: the VMM's handshake, in a thread, behind a descriptor that is not ready until it is done.
- :mod:`.doors`: the listening sockets of one service beside the paths of several VMMs, as one descriptor.
- :mod:`.failures`: what the errors of paths and handshakes mean here.
"""
