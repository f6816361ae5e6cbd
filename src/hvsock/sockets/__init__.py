"""The socket API: what CPython's AF_HYPERV is on Windows, on Linux.

- :mod:`.socket`: the class, with select and graceful disconnect.
- :mod:`.sockaddr`: the address tuples that it takes, with CPython's errors.
- :mod:`.accepting`: how an accepted connection is taken from its courier.
- :mod:`.helpers`: create_connection, create_server, socketpair, wait_for_service.
- :mod:`.aio`: asyncio streams and servers.  :mod:`.plain`: for libraries that refuse subclasses (trio).
"""
