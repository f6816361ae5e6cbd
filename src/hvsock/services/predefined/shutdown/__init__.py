"""Shutdown: a guest is shut down, started again or hibernated from within, and says so before it does it.

- :mod:`.interface`: what goes over the wire.  :mod:`.host`: for programs on the host.
- :mod:`.guest`: the guest half.  :mod:`.machine`: the acts upon a machine that is the partition's own.
- :mod:`.processes`: the end of a partition that is a folder of somebody else's machine.
"""

from __future__ import annotations

import sys

if sys.platform == "linux":
    from .host import cancel, pending, shut_down
    from .interface import Action, Pending, Phase

    __all__ = ["Action", "Pending", "Phase", "cancel", "pending", "shut_down"]
