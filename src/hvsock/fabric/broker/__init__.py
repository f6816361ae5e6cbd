"""The broker: the fabric's control process. It decides, and it hands descriptors over.

- :mod:`.broker`: the parts put together: `Broker`.
- :mod:`.server`: `hvsock up`: one broker as a process, with signals and sd_notify.
- :mod:`.reactor`: readiness and timers, on one epoll.
- :mod:`.folder`: the fabric's folder: its lock, its modes, the partitions' folders.
- :mod:`.listeners`: the bound sockets, found again after a restart.
- :mod:`.clients`: what comes in at the control sockets.
- :mod:`.handover`: how a connection gets to its listener.
- :mod:`.calls`: the methods of management.
- :mod:`.counters`, :mod:`.connections`, :mod:`.liveness`: what happened, and what is alive.
"""
