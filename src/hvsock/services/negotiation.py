"""Which version of a service two sides speak: each side lists its own, and the serving one picks (pure).

As with the integration services of the original, where each side sends its lists and one of them picks one of
each, or says that there is none in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Final

from hvsock.errors import NegotiationError

from .types import Limit, UInt32

MAX_VERSIONS: Final = 32
"""Most versions that a side lists; the originals list a handful."""
MAX_FEATURES: Final = 64
"""Most features that a side lists."""
MAX_FEATURE_BYTES: Final = 64
"""Longest name of a feature."""
NEGOTIATION_SECONDS: Final = 5.0
"""How long a peer may take to pick a version; it takes milliseconds."""

Feature = Annotated[str, Limit(MAX_FEATURE_BYTES)]
"""A feature's name."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the asking side speaks.

    Attributes:
        versions: of the service.
        features: what it knows besides.
    """

    versions: Annotated[list[UInt32], Limit(MAX_VERSIONS)] = field(default_factory=list)
    features: Annotated[list[Feature], Limit(MAX_FEATURES)] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the serving side picked.

    Attributes:
        version: the version that both speak from now on.
        features: those that both know.
        ready: whether the service can be used; while it cannot, another message follows once it can.
    """

    version: UInt32 = 0
    features: Annotated[list[Feature], Limit(MAX_FEATURES)] = field(default_factory=list)
    ready: bool = False


def pick(
    name: str, versions: Iterable[int], features: Iterable[str], offered: Offer
) -> tuple[int, frozenset[str]]:
    """The newest version that both sides speak, and the features that both know.

    Args:
        name: the service's.
        versions: of the serving side.
        features: of the serving side.
        offered: by the asking side.

    Raises:
        NegotiationError: there is no version in common; the text names both lists.
    """
    own = set(versions)
    common = own & set(offered.versions)
    if not common:
        raise NegotiationError(
            f"{name}: the other side speaks {_listed(offered.versions)}, and this side {_listed(own)}; "
            "bring both to versions that have one in common"
        )
    return max(common), frozenset(features) & frozenset(offered.features)


def _listed(versions: Iterable[int]) -> str:
    texts = [str(one) for one in sorted(set(versions))]
    if not texts:
        return "no version"
    return f"version{'s' if len(texts) > 1 else ''} {', '.join(texts)}"
