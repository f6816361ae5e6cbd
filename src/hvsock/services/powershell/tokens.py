"""What a guest remembers of its clients: tokens for sessions, and attempts in vain. The time is an argument."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

from hvsock.errors import BusyError

from .handshake import TokenError

T = TypeVar("T")

TOKEN_LIFE_SECONDS: Final = 600.0
"""How long a token can be used, as in the original."""
NO_TOKEN: Final = ""
"""What stands for the token of a client of the older version, which has none; no token that is given is empty."""
OLDER_LIFE_SECONDS: Final = 60.0
"""How long a session without a token waits for its client: anybody who may connect could come first."""
MAX_TOKENS: Final = 64
"""Tokens that wait at once; a further one takes the place of the oldest. They are used in milliseconds."""
MAX_FAILURES: Final = 10
"""Wrong passwords in FAILURE_WINDOW_SECONDS; then none is checked until the first of them is that old."""
FAILURE_WINDOW_SECONDS: Final = 60.0
"""See :data:`MAX_FAILURES`: a guesser has 14,400 a day."""


class Tokens(Generic[T]):
    """Tokens that were given, and what each is good for, once."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, float, T]] = deque(maxlen=MAX_TOKENS)

    def issue(self, token: str, what: T, now: float, life: float = TOKEN_LIFE_SECONDS) -> None:
        """Note a token.

        Args:
            token: it.
            what: what it is good for.
            now: the time in seconds, of any clock that does not go back.
            life: seconds that it lives.
        """
        self._waiting.append((token.encode(), now + life, what))

    def redeem(self, token: str, now: float) -> T:
        """What a token is good for; it is used up by that. Takes as long for each token.

        Raises:
            TokenError: it is none that waits.
        """
        from hmac import compare_digest  # here, as it loads OpenSSL, which an agent that waits does without

        given = token.encode()
        found = [one for one in self._waiting if compare_digest(one[0], given)]
        if not found:
            raise TokenError("the token was never given, or used before")
        self._waiting.remove(found[0])
        if found[0][1] <= now:
            raise TokenError("the token has expired")
        return found[0][2]


class Attempts:
    """Attempts in vain."""

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)

    def check(self, now: float) -> None:
        """Refuse another attempt where there were too many.

        Raises:
            BusyError: there were.
        """
        if len(self._failures) == MAX_FAILURES and now - self._failures[0] < FAILURE_WINDOW_SECONDS:
            raise BusyError(
                f"{MAX_FAILURES} passwords were wrong within {FAILURE_WINDOW_SECONDS:g} s, so none is checked now"
            )

    def failed(self, now: float) -> None:
        """Note one."""
        self._failures.append(now)
