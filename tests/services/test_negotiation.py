"""Each side lists what it speaks, and one picks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.errors import NegotiationError, ProtocolError, UsageError
from hvsock.services.messages import Codec, schema_file
from hvsock.services.negotiation import (
    MAX_FEATURE_BYTES,
    MAX_FEATURES,
    MAX_VERSIONS,
    Accepted,
    Offer,
    pick,
)

ROOTS = (Offer, Accepted)
CODEC = Codec(schema_file("test", "test.proto", ROOTS), ROOTS)
versions = st.lists(st.integers(0, 5), max_size=5)
features = st.lists(st.sampled_from("abcdef"), max_size=5)


@given(versions, features, versions, features)
def test_what_is_picked_is_the_newest_that_both_speak(
    own: list[int], knows: list[str], theirs: list[int], wants: list[str]
) -> None:
    common = [one for one in own if one in theirs]
    if common:
        assert pick("x", own, knows, Offer(theirs, wants)) == (max(common), frozenset(knows) & frozenset(wants))
        return
    with pytest.raises(NegotiationError, match="one in common"):
        pick("x", own, knows, Offer(theirs, wants))


@pytest.mark.parametrize(
    ("own", "theirs", "text"),
    [
        (
            [1, 2],
            [4, 3, 4],
            "Heartbeat: the other side speaks versions 3, 4, and this side versions 1, 2; bring both ",
        ),
        ([1], [], "the other side speaks no version, and this side version 1; "),
        ([1], [2**32 - 1], "speaks version 4294967295, "),
    ],
)
def test_no_match_says_what_each_side_speaks(own: list[int], theirs: list[int], text: str) -> None:
    with pytest.raises(NegotiationError) as caught:
        pick("Heartbeat", own, (), Offer(theirs))
    assert text in str(caught.value)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=MAX_VERSIONS), st.lists(st.text(max_size=16), max_size=8))
def test_an_offer_comes_back(numbers: list[int], names: list[str]) -> None:
    offer = Offer(numbers, names)
    assert CODEC.decode(Offer, CODEC.encode(offer)) == offer
    accepted = Accepted(7, names, ready=True)
    assert CODEC.decode(Accepted, CODEC.encode(accepted)) == accepted


BEYOND = [
    Offer(versions=[1] * (MAX_VERSIONS + 1)),
    Offer(features=["x"] * (MAX_FEATURES + 1)),
    Offer(features=["x" * (MAX_FEATURE_BYTES + 1)]),
    Accepted(features=["x"] * (MAX_FEATURES + 1)),
    Accepted(features=["é" * (MAX_FEATURE_BYTES // 2 + 1)]),
]


@pytest.mark.parametrize("beyond", BEYOND, ids=range(len(BEYOND)))
def test_lists_have_bounds(beyond: Offer | Accepted) -> None:
    with pytest.raises(UsageError):
        CODEC.encode(beyond)
    wire = CODEC._classes[type(beyond)](features=beyond.features)
    if isinstance(beyond, Offer):
        wire.versions.extend(beyond.versions)
    with pytest.raises(ProtocolError, match="the most"):
        CODEC.decode(type(beyond), wire.SerializeToString())
