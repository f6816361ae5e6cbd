"""The broker: the fabric's control process. It decides, and it hands descriptors over.

- :mod:`.broker`: the parts put together: `Broker`.
- :mod:`.server`: `hvsock up`: one broker as a process, with signals and sd_notify.
- :mod:`.folder`: the fabric's folder: its lock, its modes, the partitions' folders.
- :mod:`.services`: the registry as the broker sees it.
- :mod:`.gates`, :mod:`.clients`, :mod:`.quota`: what comes in at the control sockets, and how much of it.
- :mod:`.verdicts`: verdicts on connects, remembered while they hold.
- :mod:`.binding`, :mod:`.listeners`: the bound sockets, found again after a restart.
- :mod:`.handover`, :mod:`.waiting`: how a connection gets to its listener, and where it waits for room.
- :mod:`.notices`: what devices of VMs are told to reset.
- :mod:`.calls`, :mod:`.refusals`: the methods of management, and what a refused caller is told.
- :mod:`.counters`, :mod:`.connections`, :mod:`.liveness`: what happened, and what is alive.
- :mod:`.quota`: what partitions share.
"""
