"""Loading modules that stay, in a process that is forked later."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def for_good() -> Iterator[None]:
    """Within, modules are loaded that stay: nothing looks for garbage meanwhile, nor ever in what they made.

    That is faster, which an emulated guest feels; and a fork goes on sharing that memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
