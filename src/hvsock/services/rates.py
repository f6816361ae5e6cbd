"""How often something may happen, and how slow a peer may be; the time is an argument (pure)."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple


class Bucket:
    """A bucket of tokens, full at first, which fills up again by the time.

    Args:
        rate: tokens that come in a second.
        most: how many it holds.
    """

    def __init__(self, rate: float, most: float) -> None:
        self._rate = rate
        self._most = most
        self._tokens = most
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Take a token if there is one.

        Args:
            now: seconds of a clock that goes on; those before the last call count as that.
        """
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def take_ahead(self, now: float) -> float:
        """Take a token that may not be there yet; the seconds until it is, 0 where it is."""
        self._fill(now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    @property
    def is_empty(self) -> bool:
        """Whether there was no more token at the last call."""
        return self._tokens < 1

    def _fill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now if self._at is None else max(now, self._at)


class Verdict(NamedTuple):
    """Whether something of a peer is let through.

    Attributes:
        through: whether it is.
        left_out: how many of this peer before it were not, and were not told of yet; 0 unless `through`.
        last: whether the next one would not be.
    """

    through: bool
    left_out: int = 0
    last: bool = False


class PerPeer:
    """Buckets of many peers. A peer that was quiet for long is forgotten, and so is the quietest of too many.

    Args:
        rate: what each peer may in a second.
        most: what it may at once.
        peers: of how many at most something is known.
    """

    def __init__(self, rate: float, most: float, peers: int) -> None:
        self._rate = rate
        self._most = most
        self._peers = peers
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def ask(self, peer: str, now: float) -> Verdict:
        """Whether one more of `peer` is let through.

        Args:
            peer: its name.
            now: seconds of a clock that goes on.
        """
        bucket = self._buckets.pop(peer, None) or Bucket(self._rate, self._most)
        self._buckets[peer] = bucket
        if len(self._buckets) > self._peers:
            quietest, _ = self._buckets.popitem(last=False)
            self._left_out.pop(quietest, None)
        if not bucket.take(now):
            self._left_out[peer] = self._left_out.get(peer, 0) + 1
            return Verdict(through=False)
        return Verdict(through=True, left_out=self._left_out.pop(peer, 0), last=bucket.is_empty)


class Slowness:
    """How long a peer that is waited for may take: it has a time, which what it sends makes longer again.

    Args:
        rate: bytes a second that keep it going; 0 for no such bound.
        seconds: the time that it has at first, and at most.
    """

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate = rate
        self.seconds = seconds
        self._left = seconds

    def waited(self, seconds: float, count: int) -> bool:
        """Whether the peer may go on, after it was waited for, and sent so many bytes."""
        if not self.rate:
            return True
        self._left -= seconds
        if self._left < 0:
            return False
        self._left = min(self.seconds, self._left + count / self.rate)
        return True

    def excuse(self, seconds: float) -> None:
        """Give the peer so much more time, since it says that it is busy."""
        self._left = min(self.seconds, self._left + seconds)
