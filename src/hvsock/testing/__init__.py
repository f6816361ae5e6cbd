"""Tools for testing code that talks over Hyper-V sockets, or over any other byte stream.

They need neither Hyper-V nor a test framework.

:func:`check_stream` (:mod:`hvsock.testing.check_stream`)
    the conformance suite that every stream of this library passes; hold your own stream to it.
:func:`memory_pair`, :func:`lockstep_pair` (:mod:`hvsock.testing.streams`)
    connected streams inside one process, to run a protocol over without a socket.
:class:`FakeClock` (:mod:`hvsock.testing.clock`)
    a clock for code that takes its time as an argument.
:func:`leak_check` (:mod:`hvsock.testing.leaks`)
    requires that a piece of code leaves nothing behind.
"""

from .check_stream import CHECKS, Check, Features, MakePair, applicable_checks, check_stream
from .clock import FakeClock
from .leaks import leak_check
from .streams import ByteStream, MemoryStream, lockstep_pair, memory_pair

__all__ = [
    "CHECKS",
    "ByteStream",
    "Check",
    "FakeClock",
    "Features",
    "MakePair",
    "MemoryStream",
    "applicable_checks",
    "check_stream",
    "leak_check",
    "lockstep_pair",
    "memory_pair",
]
