"""The guest without I/O: its answers to clients of both versions, in any cuts, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.errors import BusyError, HvsockError, LostError, ProtocolError
from hvsock.services.powershell.admission import Admission, Beginning, BrokerSide, SessionSide
from hvsock.services.powershell.handshake import (
    MAX_TEXT_BYTES,
    Agreement,
    BrokerClient,
    ConfigurationError,
    CredentialError,
    Credentials,
    OlderVersionError,
    Ready,
    SessionClient,
    TokenError,
    VersionError,
)
from hvsock.services.powershell.lockstep import Lockstep, Turn
from hvsock.services.powershell.tokens import (
    FAILURE_WINDOW_SECONDS,
    MAX_FAILURES,
    MAX_TOKENS,
    TOKEN_LIFE_SECONDS,
    Attempts,
    Tokens,
)
from tests.services.powershell.rows import BYTES, TOKEN, WHOLE, wide
from tests.support import sample

CUTS = st.lists(st.integers(1, 9), max_size=80)


def drive(side: Lockstep[Any], said: Sequence[bytes], cuts: Sequence[int] = WHOLE) -> bytes:
    """Say things to a guest, each once it has answered, and let in whoever asks; returns its answers.

    After them the client is silent, and then ends the connection.
    """
    sizes = chain(cuts, repeat(4096))
    answers, todo, waiting = b"", list(said), b""
    heard = False  # whether something was said since the last answer
    try:
        while not side.done:
            turn = side.turn
            answers += turn.send
            heard = heard and not turn.send
            if turn.verdict and isinstance(side, BrokerSide):
                side.admit(TOKEN)
            elif turn.verdict and isinstance(side, SessionSide) and side.token == TOKEN:
                side.accept()
            if not turn.due:
                side.receive(b"")
                continue
            if not waiting and todo and not (heard and turn.pausable):
                waiting = todo.pop(0)
            if waiting:
                heard = True
                size = min(next(sizes), turn.due)
                data, waiting = waiting[:size], waiting[size:]
                side.receive(data)
            elif turn.pausable:
                side.pause()
                if side.turn == turn and not side.done:
                    side.end()
            else:
                side.end()
    except HvsockError as error:
        error.add_note(answers.decode())
        raise
    return answers


HELLO = (b"VERSION", b"VERSION_2")
NAMES = (wide("corp"), wide("anna"), b"NONEMPTYPW", wide("secret"))
GREETED = b"VERSION_2" + b"PASS" * 4 + b"CONF"
GIVEN = b"TOKEN " + TOKEN.encode()
BROKEN: dict[str, tuple[Sequence[bytes], type[HvsockError], str, bytes]] = {
    "garbage for the version": ((b"<html>",), OlderVersionError, "not let in", b"FAIL"),
    "another version": ((b"VERSION", b"VERSION_1"), VersionError, "another version than 2", b"VERSION_2FAIL"),
    "a domain of half a character": (
        (*HELLO, b"abc"),
        ProtocolError,
        "the domain that is no UTF-16",
        b"VERSION_2PASSFAIL",
    ),
    "half a pair": ((*HELLO, b"\x00\xd8"), ProtocolError, "no UTF-16", b"VERSION_2PASSFAIL"),
    "a domain without end": (
        (*HELLO, b"a\0" * MAX_TEXT_BYTES),
        ProtocolError,
        "the domain of more than 1024 bytes",
        b"VERSION_2PASSFAIL",
    ),
    "a user that is none": (
        (*HELLO, wide("corp"), wide("a\0b"), b"EMPTYPW"),
        ProtocolError,
        "credentials that are none",
        b"VERSION_2PASSPASSPASSFAIL",
    ),
    "garbage for the password's notice": (
        (*HELLO, *NAMES[:2], b"SOMEPW"),
        ProtocolError,
        "whether there is a password",
        b"VERSION_2PASSPASSPASSFAIL",
    ),
    "garbage for the configuration's notice": (
        (*HELLO, *NAMES, b"FAIL"),
        ProtocolError,
        "whether one is configured",
        GREETED + b"FAIL",
    ),
    "a configuration that is none": (
        (*HELLO, *NAMES, b"NONEMPTYCF", wide("JEA2")),
        ConfigurationError,
        "no configuration 'JEA2'",
        GREETED + b"PASSFAIL",
    ),
    "a token that is not wanted": (
        (*HELLO, *NAMES, b"EMPTYCF", b"FAIL"),
        LostError,
        "does not want its token",
        GREETED + b"" + GIVEN,
    ),
}
"""What a client may do wrong: what it says, what is raised, and all that the guest answers."""


@pytest.mark.parametrize("cuts", [WHOLE, BYTES], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", BROKEN)
def test_the_guest_refuses(name: str, cuts: Sequence[int]) -> None:
    said, kind, text, answers = BROKEN[name]
    with pytest.raises(kind, match=text) as caught:
        drive(BrokerSide(("JEA",)), said, cuts)
    assert type(caught.value) is kind
    assert caught.value.__notes__ == [answers.decode()]


ADMITTED: dict[str, tuple[Sequence[bytes], Credentials, Admission, bytes]] = {
    "password": (
        (*HELLO, *NAMES, b"EMPTYCF", b"PASS"),
        Credentials("anna", "secret", "corp"),
        Admission("", older=False),
        GREETED + GIVEN,
    ),
    "no password": (
        (*HELLO, wide("localhost"), wide("anna"), b"EMPTYPW", b"EMPTYCF", b"PASS"),
        Credentials("anna"),
        Admission("", older=False),
        b"VERSION_2PASSPASSPASSCONF" + GIVEN,
    ),
    "a configuration": (
        (*HELLO, *NAMES, b"NONEMPTYCF", wide("JEA"), b"PASS"),
        Credentials("anna", "secret", "corp"),
        Admission("JEA", older=False),
        GREETED + b"PASS" + GIVEN,
    ),
    "texts with NULs after them": (
        (*HELLO, wide("corp\0"), wide("anna\0"), b"NONEMPTYPW", wide("secret\0\0"), b"EMPTYCF", b"PASS"),
        Credentials("anna", "secret", "corp"),
        Admission("", older=False),
        GREETED + GIVEN,
    ),
    "the older version": (
        (*NAMES, b"EMPTYCF"),
        Credentials("anna", "secret", "corp"),
        Admission("", older=True),
        b"PASSPASSPASSCONF",
    ),
    "the older version, a domain like the question": (
        (wide("VERSION"), *NAMES[1:], b"NONEMPTYCF", wide("JEA")),
        Credentials("anna", "secret", "VERSION"),
        Admission("JEA", older=True),
        b"PASSPASSPASSCONFPASS",
    ),
}


@pytest.mark.parametrize("name", ADMITTED)
@settings(max_examples=sample(10, 1000), deadline=None)
@given(cuts=CUTS)
def test_the_guest_admits(name: str, cuts: list[int]) -> None:
    said, claim, admission, answers = ADMITTED[name]
    for way in (WHOLE, BYTES, cuts):
        side = BrokerSide(("JEA",), older=True)
        assert drive(side, said, way) == answers
        assert (side.claim, side.result) == (claim, admission)


def test_who_is_not_let_in_hears_fail() -> None:
    side = BrokerSide()
    side.admit = lambda token: None  # type: ignore[method-assign]
    with pytest.raises(CredentialError, match="'anna' is not let in") as caught:
        drive(side, (*HELLO, *NAMES))
    assert caught.value.__notes__ == ["VERSION_2PASSPASSPASSPASSFAIL"]


@pytest.mark.parametrize("count", range(8))
def test_a_client_that_leaves_at_every_step(count: int) -> None:
    said = (*HELLO, *NAMES, b"EMPTYCF", b"PASS")[:count]
    with pytest.raises(LostError, match="the client ended the connection in place of"):
        drive(BrokerSide(), said)


SESSIONS: dict[str, tuple[Sequence[bytes], Beginning | type[HvsockError], bytes]] = {
    "token": ((*HELLO, GIVEN), Beginning(), b"VERSION_2PASSPASS"),
    "another token": ((*HELLO, GIVEN[:-4] + b"abcd"), TokenError, b"VERSION_2PASSFAIL"),
    "a token of other bytes": ((*HELLO, GIVEN[:-4] + b"\xff" * 4), TokenError, b"VERSION_2PASSFAIL"),
    "a short token": ((*HELLO, GIVEN[:-4]), TokenError, b"VERSION_2PASSFAIL"),
    "no token": ((*HELLO, b"TOKEN "), TokenError, b"VERSION_2PASSFAIL"),
    "garbage for the token": ((*HELLO, b"<Data "), ProtocolError, b"VERSION_2PASSFAIL"),
    "another version": ((b"VERSION", b"<Data "), VersionError, b"VERSION_2FAIL"),
    "the older version": ((b"<Data Stream=",), OlderVersionError, b"FAIL"),
    "an end": ((), LostError, b""),
    "an end in the question": ((b"VERS",), LostError, b""),
}


@pytest.mark.parametrize("cuts", [WHOLE, BYTES], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", SESSIONS)
def test_the_session_service(name: str, cuts: Sequence[int]) -> None:
    said, outcome, answers = SESSIONS[name]
    side = SessionSide(len(TOKEN))
    if isinstance(outcome, Beginning):
        assert (drive(side, said, cuts), side.result) == (answers, outcome)
        return
    with pytest.raises(outcome) as caught:
        drive(side, said, cuts)
    assert type(caught.value) is outcome
    assert caught.value.__notes__ == [answers.decode()]


def test_an_older_client_has_begun_its_session() -> None:
    side = SessionSide(len(TOKEN), older=True)
    side.receive(b"<Data S")
    assert side.result == Beginning(b"<Data S", older=True)


def test_a_pause_is_no_answer_before_anything_was_said() -> None:
    for side in (BrokerSide(), SessionSide(len(TOKEN))):
        side.pause()
        side.receive(b"VERSION")
        side.pause()
        side.receive(b"VERSION_2")
        side.pause()
    side.receive(b"TOKEN ")
    side.pause()
    side.receive(TOKEN.encode())
    assert side.turn.verdict


# -- client and guest


def talk(client: Lockstep[Any], guest: Lockstep[Any], cuts: Sequence[int]) -> None:
    """Let two sides talk in cuts until both are done, or one raises; a pause comes once nothing is under way."""
    sizes = chain(cuts, repeat(4096))
    sides, begun, coming = (client, guest), [Turn(), Turn()], [b"", b""]

    def step(number: int) -> bool:
        """Lets a side go on; says whether it did."""
        side, turn = sides[number], sides[number].turn
        if side.done:
            return False
        speaks = turn is not begun[number]
        if speaks:
            begun[number] = turn
            coming[1 - number] += turn.send
        if turn.verdict and isinstance(side, BrokerSide):
            side.admit(TOKEN)
        elif turn.verdict and isinstance(side, SessionSide) and side.token == TOKEN:
            side.accept()
        data = coming[number][: min(next(sizes), turn.due) if coming[number] else 0]
        if turn.due and not data:
            return speaks
        coming[number] = coming[number][len(data) :]
        side.receive(data)
        return True

    while not (client.done and guest.done):
        if not any([step(0), step(1)]):
            waiting = [side for side in sides if not side.done and side.turn.pausable]
            assert waiting, (client.turn, guest.turn)
            for side in waiting:
                side.pause()


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=100)


@settings(max_examples=sample(60, 5000), deadline=None)
@given(TEXT, st.just("") | TEXT, st.just("") | TEXT, st.just("") | TEXT, st.booleans(), CUTS)
def test_client_and_guest_agree(
    user: str, password: str, domain: str, configuration: str, older: bool, cuts: list[int]
) -> None:
    credentials = Credentials(user, password, domain)
    client = BrokerClient(credentials, configuration, older=older)
    guest = BrokerSide((configuration,), older=older)
    talk(client, guest, cuts)
    assert client.result == Agreement(None if older else TOKEN)
    assert guest.result == Admission(configuration, older)
    assert guest.claim == (credentials if domain != "localhost" else Credentials(user, password))
    session, answering = SessionClient(TOKEN), SessionSide(len(TOKEN))
    talk(session, answering, cuts)
    assert (session.result, answering.result) == (Ready(), Beginning())


# -- what the guest remembers


def test_a_token_is_good_once_and_for_its_time() -> None:
    tokens = Tokens[str]()
    tokens.issue("a", "anna", now=100.0)
    tokens.issue("b", "berta", now=100.0)
    tokens.issue("c", "clara", now=100.0, life=1.0)
    assert tokens.redeem("a", 100.0 + TOKEN_LIFE_SECONDS - 1) == "anna"
    for token in ("a", "d", "", "\ufffd"):
        with pytest.raises(TokenError, match="never given, or used before"):
            tokens.redeem(token, 100.0)
    with pytest.raises(TokenError, match="expired"):
        tokens.redeem("b", 100.0 + TOKEN_LIFE_SECONDS)
    with pytest.raises(TokenError, match="expired"):
        tokens.redeem("c", 101.0)
    with pytest.raises(TokenError, match="used before"):
        tokens.redeem("c", 100.0)


def test_tokens_are_bounded() -> None:
    tokens = Tokens[int]()
    for number in range(MAX_TOKENS + 1):
        tokens.issue(str(number), number, now=0.0)
    with pytest.raises(TokenError):
        tokens.redeem("0", 0.0)
    assert tokens.redeem("1", 0.0) == 1


def test_attempts_in_vain_are_bounded() -> None:
    attempts = Attempts()
    for number in range(MAX_FAILURES):
        attempts.check(float(number))
        attempts.failed(float(number))
    with pytest.raises(BusyError, match="10 passwords were wrong within 60 s"):
        attempts.check(FAILURE_WINDOW_SECONDS - 0.1)
    attempts.check(FAILURE_WINDOW_SECONDS)
    attempts.failed(FAILURE_WINDOW_SECONDS)
    with pytest.raises(BusyError):
        attempts.check(FAILURE_WINDOW_SECONDS + 0.5)
