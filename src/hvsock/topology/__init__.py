"""Who may talk to whom: pure rules without sockets, files or clock.

Small parts, each one question:

- :mod:`.partitions`: which partitions are there, and who is whose parent?
- :mod:`.reachability`: which partition does an address mean, seen from another?
- :mod:`.matching`: which listener takes a connection?
- :mod:`.access`: what do the service's settings allow?
- :mod:`.refusals`: why not, and what to do about it?
- :mod:`.decision`: all of it in order, as one verdict that explains itself.
"""
