"""The fabric: the host side that a hypervisor would give, in user space.

- :mod:`.messages`: the bytes that connectors, listeners and the broker exchange (pure).
- :mod:`.paths`: where a fabric's sockets and files are.
- :mod:`.client`: one request to the broker and its answer.
- :mod:`.broker`: the control process; it decides and hands descriptors over, and carries no payload.
- :mod:`.embedded`: a broker in a thread of this process, for tests and small programs.
"""
