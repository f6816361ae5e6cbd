"""Layers that are made once and kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.vm import cpio, layers
from hvsock.vm.layers import KEPT_LAYERS, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


def test_a_layer_is_found_with_what_it_was_made_of(store: Store) -> None:
    made = store.make("one", "key1", [cpio.file("a", b"1")], {"packages": {"p": "1.0"}})
    found = store.find("one", "key1")
    assert found == made
    assert made.facts["packages"] == {"p": "1.0"}
    assert made.facts["bytes"] == os.path.getsize(made.path)
    assert store.find("one", "key2") is None
    assert store.find("two", "key1") is None


def test_a_layer_that_is_not_finished_is_none(store: Store) -> None:
    made = store.make("one", "key1", [], {})
    os.unlink(made.path)
    assert store.find("one", "key1") is None
    made = store.make("one", "key2", [], {})
    Path(store.path("one", "key2", ".json")).write_text("{")
    assert store.find("one", "key2") is None


def test_who_fails_in_the_middle_leaves_nothing_that_counts(store: Store) -> None:
    with pytest.raises(ValueError, match="no path"):
        store.make("one", "key1", [cpio.file("..", b"")], {})
    assert store.find("one", "key1") is None


def test_the_oldest_layers_of_a_name_go(store: Store) -> None:
    kept = store.make("other", "key", [], {})
    for number in range(KEPT_LAYERS + 2):
        layer = store.make("one", f"key{number}", [], {})
        Path(store.path("one", f"key{number}", ".kernel")).touch()
        for suffix in (".cpio", ".json", ".kernel"):
            os.utime(store.path("one", f"key{number}", suffix), (number, number))
        assert os.path.exists(layer.path)
    store.make("one", "last", [], {})
    names = sorted(
        name.partition(".")[0] for name in os.listdir(os.path.dirname(kept.path)) if name.endswith(".json")
    )
    newest = [f"one-key{number}" for number in range(3, KEPT_LAYERS + 2)]
    assert names == sorted(["other-key", "one-last", *newest])
    assert not os.path.exists(store.path("one", "key0", ".kernel"))


def test_keys_tell_parts_apart() -> None:
    parts = [("a", "b"), ("ab",), (["a", "b"],), ({"a": "b"},), ()]
    assert len({layers.key_of(*one) for one in parts}) == len(parts)
    assert layers.key_of({"a": 1, "b": 2}) == layers.key_of({"b": 2, "a": 1})
