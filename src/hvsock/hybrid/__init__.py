"""Hybrid sockets: AF_UNIX in the manner of Firecracker, as several VMMs have it for their virtio sockets.

A program of the host connects to the VMM's Unix socket and says ``CONNECT <port>``; the VMM answers
``OK <number>``, and from then on the bytes are those of a connection to that port of the guest. What the guest
connects to on its host comes to ``<path>_<port>``, without a word ahead.

- :mod:`.profiles` and :mod:`.handshake`: who says what, and in which words (pure).
- :mod:`.connecting`, :mod:`.aio`, :mod:`.listening`: for programs that talk to such a VMM.
- :mod:`.serving`, :mod:`.following`, :mod:`.process`: a VM of the fabric, for programs written for such a VMM.
"""
