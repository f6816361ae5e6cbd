"""The fabric: the host side that a hypervisor would give, in user space.

- :mod:`.messages`: the bytes that connectors, listeners and the broker exchange (pure).
- :mod:`.paths`: where a fabric's sockets and files are.
- :mod:`.passing`, :mod:`.marks`: descriptors that are handed over, and how a graceful end is told from a death.
- :mod:`.client`: one request to the broker and its answer.  :mod:`.vsocklink`: the way to it from a Linux guest.
- :mod:`.reactor`, :mod:`.door`: the loop of the broker, of devices and of relays, and who comes in there.
- :mod:`.couriers`: the listener by which a device, or a way up, takes all connections of a partition.
- :mod:`.broker`: the control process; it decides and hands descriptors over, and carries no payload.
- :mod:`.embedded`: a broker in a thread of this process, for tests and small programs.
"""
