"""The socket API: what CPython's AF_HYPERV is on Windows, on Linux.

- :mod:`.socket`: the class, with select and graceful disconnect.
- :mod:`.vsock`: the class in a Linux guest.  :mod:`.hybrid`: on a host of VMMs.  :mod:`.hyperv`: on Windows.
- :mod:`.chosen`: which of them `hvsock.socket` is.
- :mod:`.sockaddr`: the address tuples that it takes, with CPython's errors.
- :mod:`.options`: what a socket can be asked for, and the options of both levels.
- :mod:`.connecting`, :mod:`.guards`: a connect that is under way, and what its socket must not do meanwhile.
- :mod:`.accepting`: how an accepted connection is taken from its courier.
- :mod:`.sharing`: sockets as arguments of processes that multiprocessing spawns.
- :mod:`.helpers`: create_connection, create_server, socketpair, wait_for_service.
- :mod:`.patience`: what create_connection waits for.
- :mod:`.aio`: asyncio streams and servers, on :mod:`.streams`.  :mod:`.trio`: trio's.
- :mod:`.plain`: for libraries that refuse subclasses.
"""
