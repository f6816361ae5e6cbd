"""What the host makes of answers, and of none: without clock or connection."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.errors import ProtocolError
from hvsock.services.predefined.heartbeat.applications import ApplicationState
from hvsock.services.predefined.heartbeat.protocol import Pulse
from hvsock.services.predefined.heartbeat.status import LOST_SECONDS, Health, Heart, Status


def answered(heart: Heart, now: float, state: ApplicationState = ApplicationState.HEALTHY) -> None:
    beat = heart.beat(now)
    heart.answer(Pulse(beat.sequence + 1, state), now + 0.5)


def statuses(health: Health) -> tuple[Status, Status]:
    return health.primary, health.secondary


def test_from_no_contact_to_lost_communication_and_back() -> None:
    heart = Heart(2)
    assert statuses(heart.health(0)) == (Status.NO_CONTACT, Status.COMMUNICATION_FAILED)
    heart.connected(2)
    assert statuses(heart.health(1)) == (Status.NO_CONTACT, Status.COMMUNICATION_TIMED_OUT)
    answered(heart, 2)
    found = heart.health(3.5)
    assert statuses(found) == (Status.OK, Status.OK)
    assert (found.version, found.answered, found.round_trip, found.reason) == (2, 1.0, 0.5, "")
    heart.beat(4)
    assert heart.health(2.5 + LOST_SECONDS - 0.1).primary is Status.OK
    assert statuses(heart.health(2.5 + LOST_SECONDS)) == (
        Status.LOST_COMMUNICATION,
        Status.COMMUNICATION_TIMED_OUT,
    )
    heart.lost("reset")
    found = heart.health(10)
    assert statuses(found) == (Status.LOST_COMMUNICATION, Status.COMMUNICATION_FAILED)
    assert found.reason == "reset"
    heart.connected(2)
    answered(heart, 20)
    assert heart.health(21).primary is Status.OK


def test_a_short_loss_is_no_lost_communication() -> None:
    heart = Heart(2)
    heart.connected(2)
    answered(heart, 0)
    heart.lost("reset")
    assert heart.health(2).primary is Status.OK


def test_a_critical_program() -> None:
    heart = Heart(2)
    heart.connected(2)
    answered(heart, 0, ApplicationState.CRITICAL)
    assert statuses(heart.health(1)) == (Status.OK, Status.APPLICATION_CRITICAL_STATE)
    answered(heart, 2, ApplicationState.STOPPED)
    assert statuses(heart.health(3)) == (Status.OK, Status.OK)


def test_an_older_version() -> None:
    heart = Heart(3)
    heart.connected(2)
    answered(heart, 0, ApplicationState.CRITICAL)
    assert statuses(heart.health(1)) == (Status.DEGRADED, Status.APPLICATION_CRITICAL_STATE)


def test_a_mismatch_stays_until_there_is_an_answer() -> None:
    heart = Heart(2)
    heart.broke("no version in common")
    assert statuses(heart.health(0)) == (Status.NON_RECOVERABLE, Status.PROTOCOL_MISMATCH)
    heart.connected(2)
    assert heart.health(100).primary is Status.NON_RECOVERABLE
    answered(heart, 101)
    assert heart.health(102).primary is Status.OK


def test_paused() -> None:
    heart = Heart(2)
    assert heart.health(0, paused=True).primary is Status.PAUSED
    heart.connected(2)
    answered(heart, 0)
    assert statuses(heart.health(100, paused=True)) == (Status.PAUSED, Status.OK)


@pytest.mark.parametrize(
    ("status", "words", "number"),
    [
        (Status.OK, "OK", 2),
        (Status.DEGRADED, "Degraded", 3),
        (Status.NON_RECOVERABLE, "Non-Recoverable Error", 7),
        (Status.NO_CONTACT, "No Contact", 12),
        (Status.LOST_COMMUNICATION, "Lost Communication", 13),
        (Status.PAUSED, "Paused", 15),
        (Status.PROTOCOL_MISMATCH, "Protocol Mismatch", 32775),
        (Status.APPLICATION_CRITICAL_STATE, "Application Critical State", 32782),
    ],
)
def test_the_words_and_numbers_of_the_original(status: Status, words: str, number: int) -> None:
    assert (status.words, status.value) == (words, number)


@given(st.integers(0, 2**64 - 1))
def test_the_only_answer_that_counts_is_the_one_that_is_due(number: int) -> None:
    heart = Heart(2)
    heart.connected(2)
    with pytest.raises(ProtocolError, match="to no beat"):
        heart.answer(Pulse(number), 0)
    due = heart.beat(0).sequence + 1
    if number != due:
        with pytest.raises(ProtocolError, match="is due"):
            heart.answer(Pulse(number), 0)
    heart.answer(Pulse(due), 0)


@given(st.lists(st.sampled_from(["connect", "beat", "answer", "lose", "break", "wait"]), max_size=30))
def test_ok_is_only_said_of_who_answered_lately(events: list[str]) -> None:
    heart, now, last, connected = Heart(2), 0.0, None, False
    due = 0
    for event in events:
        now += 1.0
        if event == "connect":
            heart.connected(2)
            connected = True
        elif event == "beat" and connected and not heart.is_waiting:
            due = heart.beat(now).sequence + 1
        elif event == "answer" and heart.is_waiting:
            heart.answer(Pulse(due), now)
            last = now
        elif event == "lose":
            heart.lost("lost")
            connected = False
        elif event == "break":
            heart.broke("broken")
            connected = False
        found = heart.health(now)
        assert (found.answered is None) == (last is None)
        if found.primary is Status.OK:
            assert last is not None
            assert now - last < LOST_SECONDS
        if last is None:
            assert found.primary in (Status.NO_CONTACT, Status.NON_RECOVERABLE)
