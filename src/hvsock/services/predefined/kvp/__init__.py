"""Data exchange: keys and values between a host and its guest (Key-Value Pair Exchange).

- :mod:`.pools`: the four pools, and all bounds.  :mod:`.interface`: what goes over the wire.
- :mod:`.store`: the guest's file.  :mod:`.changes`: what watchers are told.
- :mod:`.guest`: the guest half.  :mod:`.intrinsic`: what both sides say by themselves.
- :mod:`.host`: for programs on the host, :func:`.host.exchange`.  :mod:`.local`: for programs in the guest,
  :func:`.local.local`.
"""

from __future__ import annotations

import sys

if sys.platform == "linux":
    from .host import Exchange, exchange
    from .interface import Change, ChangeKind, Item
    from .local import Local, local
    from .pools import Pool

    __all__ = ["Change", "ChangeKind", "Exchange", "Item", "Local", "Pool", "exchange", "local"]
