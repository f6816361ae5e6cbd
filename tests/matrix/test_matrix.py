"""docs/matrix.md is what its data render to, and the data are of this suite; `make matrix` runs it."""

from __future__ import annotations

import copy
import errno
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.addresses import HV_GUID_PARENT, ServiceId
from hvsock.testing import CHECKS, Features, memory_pair
from tests.matrix import local, probes, streams
from tests.matrix.__main__ import NOVEL, marked
from tests.matrix.features import ALL_CHECKS, SECTIONS
from tests.matrix.probes import (
    ABSENT,
    FAILED,
    FORMS,
    NOT_RUN,
    ONLY_ONE_WAY,
    PASSED,
    PROBES,
    Lack,
    Setting,
    Way,
    outcome_of,
    refused,
)
from tests.matrix.streams import run_suite
from tests.matrix.table import FAKE, TRANSPORTS, cell, empty, problems, rendered

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def data() -> dict[str, Any]:
    """What was run."""
    found: dict[str, Any] = json.loads((DOCS / "matrix.json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_what_the_data_render_to(data: dict[str, Any]) -> None:
    assert (DOCS / "matrix.md").read_text(encoding="utf-8") == rendered(data), "run: python -m tests.matrix page"


def test_the_data_are_of_this_suite(data: dict[str, Any]) -> None:
    assert problems(data) == [], "run: make matrix"


def test_the_data_have_neither_dates_nor_machines(data: dict[str, Any]) -> None:
    assert list(data) == [one.key for one in TRANSPORTS]
    for column in data.values():
        assert set(column) == {"checks", "throughput"}
    assert "/tmp/" not in json.dumps(data)


def test_every_check_is_in_one_row() -> None:
    rows = Counter(name for section in SECTIONS for feature in section.features for name in feature.checks)
    assert rows == dict.fromkeys(ALL_CHECKS, 1)


def test_what_is_wrong_with_data_is_found(data: dict[str, Any]) -> None:
    def changed(key: str, name: str, outcome: str) -> list[str]:
        other = copy.deepcopy(data)
        other[key]["checks"][name] = outcome
        return problems(other)

    assert "it is a fake" in changed("hyperv", "large_duplex", PASSED)[0]
    assert "it is none" in changed("fabric", "large_duplex", FAKE)[0]
    assert "no outcome" in changed("fabric", "large_duplex", "well")[0]
    assert "no check novel" in changed("fabric", "novel", PASSED)[0]
    assert "no reason is given" in changed("fabric", "large_duplex", NOT_RUN)[0]
    assert "no reason is given" in changed("fabric", "large_duplex", f"{NOT_RUN}: ")[0]
    assert changed("fabric", "large_duplex", f"{NOT_RUN}: it was late") == []
    assert len(problems({})) == len(ALL_CHECKS) * len(TRANSPORTS)
    assert problems({one.key: empty(one) for one in TRANSPORTS}) == []


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        ([PASSED, PASSED], "pass"),
        ([FAKE], "fake"),
        ([NOT_RUN], "not run"),
        (["not run: why", "not run: why not"], "not run"),
        (["no: EINVAL", "no: EINVAL"], "no: EINVAL"),
        ([ABSENT], "no"),
        ([PASSED, ABSENT, PASSED], "2 pass; 1 no"),
        (["fail: 1", "fail: 2"], "**FAIL**"),
        ([PASSED, "fail: 1", NOT_RUN], "1 pass; 1 not run; **1 FAIL**"),
    ],
)
def test_cells(outcomes: list[str], shown: str) -> None:
    assert cell(outcomes) == shown


@pytest.fixture(scope="module")
def over_the_fabric() -> dict[str, str]:
    """What becomes of the probes there."""
    found: dict[str, str] = local.probe_fabric()
    return found


@pytest.mark.parametrize("name", PROBES)
def test_the_fabric(over_the_fabric: dict[str, str], name: str) -> None:
    """The one transport that has everything."""
    assert over_the_fabric[name] == PASSED


def test_windows() -> None:
    found = local.probe_hyperv()
    assert not [f"{name}: {outcome}" for name, outcome in found.items() if outcome.startswith(FAILED)]
    assert found["seqpacket_messages"] == "no: ESOCKTNOSUPPORT"


def setting_with(forms: dict[str, Way | Lack], absent: Mapping[str, int | None]) -> Setting:
    """A transport without ways, and with those forms alone."""
    skipped = {name: "there is none" for name in FORMS if name not in forms}
    return Setting(forms, None, None, ServiceId.new, ServiceId.new, absent, skipped)  # type: ignore[arg-type]


def test_what_is_not_run_has_a_reason() -> None:
    setting = setting_with({}, {})
    with pytest.raises(AssertionError, match=r"not run: \['listen_any'\]"):
        replace(setting, skipped={**setting.skipped, "listen_any": ""})
    lack = Lack(lambda kind: None, "bind", HV_GUID_PARENT, errno.EPERM)
    assert replace(setting, forms=dict.fromkeys(FORMS, lack), skipped={}).forms


def test_the_page_tells_what_was_not_run(data: dict[str, Any]) -> None:
    reasons = {"large_duplex": "it was late", "order_kept": "it was early", "close_twice": "it was late"}
    data["fabric"]["checks"] |= {name: f"{NOT_RUN}: {reason}" for name, reason in reasons.items()}
    data["hyperv"] = empty(TRANSPORTS[-1])
    told = rendered(data).split("## What was not run\n\n")[1].split("\n## ")[0].splitlines()
    assert told[:2] == [
        "- fabric, `large_duplex`, `close_twice`: it was late.",
        "- fabric, `order_kept`: it was early.",
    ]
    assert told[-1] == "- hyperv: nothing was run."


def test_data_of_before_a_check_was_there_say_so(data: dict[str, Any]) -> None:
    fabric = next(one for one in TRANSPORTS if one.key == "fabric")
    del data["fabric"]["checks"]["order_kept"]
    found = marked(fabric, data["fabric"])
    assert found["checks"]["order_kept"] == NOVEL
    assert marked(fabric, empty(fabric)) == empty(fabric)
    assert not [one for one in problems({"fabric": found}) if "order_kept" in one and "fabric" in one]


def test_a_probe_that_goes_wrong_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(kind: int) -> Any:
        raise OSError(errno.EPERM, "no")

    lack = Lack(no_socket, "bind", HV_GUID_PARENT, errno.EADDRNOTAVAIL)
    absent = {"error_datagram": errno.EINVAL, "option_default": errno.EPERM}
    setting = setting_with({"connect_parent": lack}, absent)
    assert outcome_of(setting, "connect_parent").startswith("fail: PermissionError")
    assert outcome_of(setting, "connect_loopback") == "not run: there is none"
    assert outcome_of(setting, "service_port").startswith("fail: AttributeError")
    setting = replace(setting, absent={"connect_parent": errno.EPERM})
    assert outcome_of(setting, "connect_parent") == "no: EPERM"
    monkeypatch.setattr(probes, "PROBES", {"well": lambda setting: None, "ill": lambda setting: refused(1, int)})
    setting = replace(setting, absent={"well": None, "ill": None})
    assert outcome_of(setting, "well") == "fail: it is there, and had not to be"
    assert outcome_of(setting, "ill") == ABSENT


def test_the_suite_check_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("small_both_ways", "peek_takes_nothing", "makefile_round_trip", "close_twice")
    monkeypatch.setattr(streams, "CHECKS", {name: CHECKS[name] for name in chosen})
    broken = False

    def pair() -> Any:
        near, far = memory_pair()
        if broken:
            far.close()
        return near, far

    both = Features(descriptor=False, peek=False, makefile=False, sendfile=False, vectored=False)
    has = Features(makefile=False)
    found = run_suite(pair, has, both=both)
    assert found["peek_takes_nothing"].startswith(FAILED)  # it has no such argument
    del found["peek_takes_nothing"]
    assert list(found.values()) == [PASSED, ABSENT, PASSED]
    broken = True
    assert run_suite(pair, has, both=both, wait_seconds=0.1)["small_both_ways"].startswith(FAILED)
    assert ONLY_ONE_WAY.startswith(PASSED)
