"""What goes wrong, and whose doing it is.

Sockets raise the same OSError subclasses as the standard library does (ConnectionRefusedError,
PermissionError, TimeoutError ...) with the errno of the tables in docs/reference.md. Everything above
the sockets raises the errors below::

    HvsockError                   every error that is the library's own
    +-- UsageError                the caller's input; nothing was changed
    |   +-- NotFoundError         no such service, partition or fabric entry
    |   +-- DuplicateError        the id or the name is taken
    +-- RefusedError              the caller may not do that (not the owner, a guest, a read-only entry)
    +-- NoFabricError             no broker answers in this fabric's folder
    +-- StateError                a file of the fabric cannot be used (damaged, foreign, newer version)
    +-- BusyError                 it is done already by somebody, or is at its limit; try again later
    +-- NotReadyError             the other side is there and cannot do it yet
    +-- LostError                 a connection ended in the midst of an operation
    +-- RemoteError               the other side failed in a way that it does not tell
    +-- ProtocolError             a peer sent what no peer of ours sends
        +-- NegotiationError      both sides speak no version in common
"""

from __future__ import annotations


class HvsockError(Exception):
    """Root of the library's own errors; its text is one line that says what, why and what to do."""


class UsageError(HvsockError, ValueError):
    """The caller gave something that cannot be meant; nothing was changed."""


class NotFoundError(UsageError, LookupError):
    """There is no such service or partition."""


class DuplicateError(UsageError):
    """The id or the name is in use already."""


class RefusedError(HvsockError, PermissionError):
    """The caller is not allowed to do this; nothing was changed."""


class NoFabricError(HvsockError, ConnectionError):
    """No broker answers in the fabric's folder."""


class StateError(HvsockError):
    """A file of the fabric is damaged or not ours; it was left as it is."""


class BusyError(HvsockError):
    """It is under way already, or something is at its limit; nothing was changed, and later it may work."""


class NotReadyError(HvsockError):
    """The other side is there, and cannot do this yet; nothing was changed."""


class LostError(HvsockError, ConnectionError):
    """A connection ended in the midst of an operation, which may have been done or not."""


class RemoteError(HvsockError):
    """The other side failed in a way that its own log tells; what was done is not known."""


class ProtocolError(HvsockError):
    """A peer broke the protocol; that one connection was dropped."""


class NegotiationError(ProtocolError):
    """Both sides speak no version in common; nothing was done."""
