"""Which operations one side lets the other call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.errors import RefusedError, UsageError
from hvsock.services.policy import ALLOW_ALL, Policy

words = st.from_regex(r"[a-z0-9_]{1,3}", fullmatch=True)
operations = st.lists(words, min_size=1, max_size=3).map(".".join)
patterns = st.one_of(operations, operations.map(lambda one: f"{one}.*"), st.just("*"))
lists = st.frozensets(patterns, max_size=4)


def covers(pattern: str, operation: str) -> bool:
    """What a pattern means, said in another way."""
    if pattern.endswith("*"):
        return operation.startswith(pattern[:-1])
    return operation == pattern


@given(operations, st.none() | lists, lists)
def test_denied_is_denied_and_what_is_on_no_allow_list_too(
    operation: str, allow: frozenset[str] | None, deny: frozenset[str]
) -> None:
    policy = Policy.of(allow, deny)
    denied = any(covers(one, operation) for one in deny)
    allowed = allow is None or any(covers(one, operation) for one in allow)
    assert policy.allows(operation) == (allowed and not denied)


def test_nothing_is_allowed_by_an_empty_list() -> None:
    assert not Policy.of([]).allows("heartbeat.beat")
    assert ALLOW_ALL.allows("heartbeat.beat")
    assert Policy.of() == ALLOW_ALL


def test_a_star_is_for_what_is_below() -> None:
    policy = Policy.of(deny=["file.*"])
    assert policy.allows("file")
    assert policy.allows("filecopy.write")
    assert not policy.allows("file.copy.write")


def test_check_says_what_is_denied() -> None:
    policy = Policy.of(deny=["direct.exec"])
    policy.check("direct.sftp")
    with pytest.raises(RefusedError, match=r"^direct\.exec is denied by the policy of the side that serves it"):
        policy.check("direct.exec")


@pytest.mark.parametrize(
    "pattern", ["", ".", "a.", ".a", "a*", "*.a", "a.*.b", "a..b", "**", "A", "a b", "a\n", "é"]
)
@pytest.mark.parametrize("where", ["allow", "deny"])
def test_what_is_no_pattern(pattern: str, where: str) -> None:
    with pytest.raises(UsageError, match="is no operation"):
        Policy.of(**{where: ["kvp.get", pattern]})


@given(lists, lists, operations)
def test_more_is_denied(denied: frozenset[str], more: frozenset[str], operation: str) -> None:
    policy = Policy.of(deny=denied)
    assert policy.without(more).allows(operation) == Policy.of(deny=denied | more).allows(operation)
    assert not policy.without([operation]).allows(operation)
