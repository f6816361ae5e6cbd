"""VSS: freeze and thaw of a guest's file systems, for backups of its disks.

- :mod:`.interface`: the service and its messages.  :mod:`.host`: :func:`.host.frozen`, for the host's side.
- :mod:`.guest`: the guest half.  :mod:`.mounts`: which file systems, in which order (pure).
- :mod:`.keeper`: the process that freezes, and thaws whatever happens.  :mod:`.keeping`: the agent's hold of it.
- :mod:`.machine`: how far a freeze has come (pure).  :mod:`.hooks`: programs that run before and after.
"""
