"""PowerShell Direct: sessions of PowerShell over Hyper-V sockets, client and server.

How a session opens: the rules are :mod:`.lockstep`, :mod:`.handshake` (client) and :mod:`.admission` (guest),
without I/O; :mod:`.brokering` opens a session from the host, and :mod:`.server` answers in the guest.

What is said in it: :mod:`.framing` (lines), :mod:`.fragments` (messages) and :mod:`.clixml` (objects, where
psrpcore knows less of them than PowerShell), without I/O; :mod:`.channel` sends and acknowledges, :mod:`.pools`
and :mod:`.pipelines` are what a host has of it, over psrpcore, with :mod:`.values` and :mod:`.hostcalls` between
its objects and Python's. :mod:`.client` is for users, with :mod:`.commands`, :mod:`.records` and :mod:`.hosts`;
these need no psrpcore until a session begins.
"""
