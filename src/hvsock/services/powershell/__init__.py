"""PowerShell Direct: sessions of PowerShell over Hyper-V sockets, client and server.

How a session opens: the rules are :mod:`.lockstep`, :mod:`.handshake` (client) and :mod:`.admission` (guest),
without I/O; :mod:`.brokering` opens a session from the host, and :mod:`.server` answers in the guest.
"""
