"""Time synchronisation: the host gives samples of its clock, and the guest sets or slews its own.

- :mod:`.arithmetic`: offset and round trip out of four time stamps, and what is stale (pure).
- :mod:`.clock`: the system's clock, to be read, set and slewed.
- :mod:`.protocol`: the service and its messages, which is also the guest half.
- :mod:`.host`: one synchronisation of one VM.
- :mod:`.deciding`: whether a guest's clock is set or slewed, when nobody says it (pure).
- :mod:`.keeping`: the clocks of all VMs, kept right for as long as they run.
"""
