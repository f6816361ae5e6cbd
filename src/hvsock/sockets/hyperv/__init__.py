"""The hyperv transport: Hyper-V sockets on Windows, over CPython's own `socket.AF_HYPERV` (3.12 and later).

- :mod:`.socket`: the class, with the interface of the fabric's.
- :mod:`.failures`: what the numbers of Winsock mean here, as errno names with texts that say what to do.
- :mod:`.helpers`: resolve, create_connection, create_server.
- :mod:`.aio`: asyncio streams and servers on the Proactor loop, which cannot connect or accept these sockets.

Nothing here needs Windows to be imported, so that all of it can be tested against a fake; only a socket cannot be
made elsewhere.
"""
