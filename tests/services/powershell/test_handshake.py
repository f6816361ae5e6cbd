"""The client without I/O: every row of the reference, whole, byte by byte and in random cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.errors import HvsockError, LostError, ProtocolError, UsageError
from hvsock.services.powershell.handshake import (
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
from hvsock.services.powershell.lockstep import Lockstep
from tests.services.powershell.rows import (
    BYTES,
    GREETING,
    PROBE,
    SESSION,
    TOKEN,
    WHOLE,
    Row,
    Script,
    ending,
    login,
    play,
    wide,
)
from tests.support import sample

ANNA = Credentials("anna", "secret")
EMPTY = Credentials("anna")
CUTS = st.lists(st.integers(1, 9), max_size=80)

Client = Callable[[], Lockstep[Any]]


def a_client(credentials: Credentials = ANNA, configuration: str = "", **settings: bool) -> Client:
    """Makes clients of a broker."""
    return lambda: BrokerClient(credentials, configuration, **settings)


def of_session() -> Lockstep[Any]:
    """A client of a session service."""
    return SessionClient(TOKEN)


LONG = "FakeTokenaaaaaaaaaAAAAAAAAAAAAAAAAAAAAAA0FakeTokenaaaaaaaaaAAAAAAAAAAAAAAAAAAAAAA0+/=="
UNPADDED = "abcd" * 12
STRANGE = Credentials("anna Ā\U0001f600", "pä\u0100ss ", "Größe")

GOOD: dict[str, tuple[Client, Sequence[Row], object]] = {
    "password": (a_client(), (*GREETING, *login(), *ending()), Agreement(TOKEN)),
    "password, answered by PASS": (
        a_client(),
        (*GREETING, *login(last=b"PASS"), Row(b"PASS", b"TOKEN " + TOKEN.encode()), Row(b"PASS")),
        Agreement(TOKEN),
    ),
    "no password": (a_client(EMPTY), (*GREETING, *login(""), *ending()), Agreement(TOKEN)),
    "configuration": (
        a_client(ANNA, "Größe"),
        (*GREETING, *login(), *ending("Größe")),
        Agreement(TOKEN),
    ),
    "all languages": (
        a_client(STRANGE),
        (*GREETING, *login(STRANGE.password, b"CONF", STRANGE.user, STRANGE.domain), *ending()),
        Agreement(TOKEN),
    ),
    "a later version": (
        a_client(),
        (Row(b"VERSION", b"VERSION_10"), *GREETING[1:], *login(), *ending()),
        Agreement(TOKEN),
    ),
    "a long token": (a_client(), (*GREETING, *login(), *ending(token=LONG)), Agreement(LONG)),
    "a token without padding": (a_client(), (*GREETING, *login(), *ending(token=UNPADDED)), Agreement(UNPADDED)),
    "a token that is no base64": (
        a_client(),
        (*GREETING, *login(), *ending(token="FakeToken0+/=")),
        Agreement("FakeToken0+/="),
    ),
    "NULs": (
        a_client(ANNA, "JEA"),
        [row._replace(answer=row.answer + b"\0\0") for row in (*GREETING, *login())]
        + [Row(b"NONEMPTYCF", b"PASS\0"), Row(wide("JEA"), b"TOKEN " + UNPADDED.encode() + b"\0"), Row(b"PASS")],
        Agreement(UNPADDED),
    ),
    "the older version is found": (a_client(), PROBE, Agreement(again=True)),
    "the older version says FAIL": (a_client(), (Row(b"VERSION", b"FAIL"), *PROBE[1:]), Agreement(again=True)),
    "the older version ends the probe": (
        a_client(),
        (PROBE[0], PROBE[1]._replace(answer=b"")),
        Agreement(again=True),
    ),
    "the older version": (a_client(older=True), (*login(last=b"PASS"), Row(b"PASS")), Agreement()),
    "the older version without password": (
        a_client(EMPTY, older=True),
        (*login("", b"PASS"), Row(b"PASS")),
        Agreement(),
    ),
    "the older version with CONF": (a_client(older=True), (*login(), Row(b"EMPTYCF")), Agreement()),
    "the older version with a configuration": (
        a_client(ANNA, "JEA", older=True),
        (*login(), Row(b"NONEMPTYCF", b"PASS"), Row(wide("JEA"))),
        Agreement(),
    ),
    "session": (of_session, SESSION, Ready()),
    "session of a later version": (of_session, (Row(b"VERSION", b"VERSION_10"), *SESSION[1:]), Ready()),
}
"""What ends well."""

REFUSED: dict[str, tuple[Client, Sequence[Row], type[HvsockError], str]] = {
    "wrong password": (
        a_client(),
        (*GREETING, *login(last=b"FAIL"), Row(b"FAIL")),
        CredentialError,
        "does not let 'anna' in",
    ),
    "wrong empty password": (
        a_client(EMPTY),
        (*GREETING, *login("", b"FAIL"), Row(b"FAIL")),
        CredentialError,
        "'anna'",
    ),
    "wrong password, older": (
        a_client(older=True),
        (*login(last=b"FAIL"), Row(b"FAIL")),
        CredentialError,
        "does not let 'anna' in",
    ),
    "the domain": (
        a_client(),
        (*GREETING, Row(wide("localhost"), b"FAIL"), Row(b"FAIL")),
        CredentialError,
        "refuses the domain",
    ),
    "the user": (
        a_client(),
        (*GREETING, login()[0], Row(wide("anna"), b"FAIL"), Row(b"FAIL")),
        CredentialError,
        "refuses the user",
    ),
    "version 2": (a_client(), (GREETING[0], Row(b"VERSION_2", b"FAIL")), VersionError, "broker refuses version 2"),
    "the older version is forbidden": (
        a_client(require_authentication=True),
        PROBE,
        OlderVersionError,
        "authentication is required",
    ),
    "the older version has no configurations": (
        a_client(ANNA, "JEA", older=True),
        (*login(last=b"PASS"), Row(b"FAIL")),
        ConfigurationError,
        "too old to have the configuration 'JEA'",
    ),
    "the configuration": (
        a_client(ANNA, "JEA"),
        (*GREETING, *login(), Row(b"NONEMPTYCF", b"PASS"), Row(wide("JEA"), b"FAIL")),
        ConfigurationError,
        "no configuration 'JEA'",
    ),
    "no token": (
        a_client(),
        (*GREETING, *login(), Row(b"EMPTYCF", b"FAIL")),
        CredentialError,
        "gives no token",
    ),
    "an empty token": (
        a_client(),
        (*GREETING, *login(), Row(b"EMPTYCF", b"TOKEN \0")),
        ProtocolError,
        "no base64",
    ),
    "a token with garbage": (
        a_client(),
        (*GREETING, *login(), Row(b"EMPTYCF", b"TOKEN abc<")),
        ProtocolError,
        "no base64",
    ),
    "a token that goes on after its padding": (
        a_client(),
        (*GREETING, *login(), Row(b"EMPTYCF", b"TOKEN ab=c")),
        ProtocolError,
        "no base64",
    ),
    "a token without end": (
        a_client(),
        (*GREETING, *login(), Row(b"EMPTYCF", b"TOKEN " + b"a" * 2000)),
        ProtocolError,
        "more than 1018 characters",
    ),
    "NULs without end": (
        a_client(),
        (*GREETING, Row(wide("localhost"), b"\0" * 100)),
        ProtocolError,
        "fills the answer to the domain with NULs",
    ),
    "the session's version": (
        of_session,
        (Row(b"VERSION", b"FAIL"),),
        VersionError,
        "refuses to tell its version",
    ),
    "the session's version 2": (
        of_session,
        (GREETING[0], Row(b"VERSION_2", b"FAIL")),
        VersionError,
        "session service refuses version 2",
    ),
    "the token": (
        of_session,
        (*GREETING, Row(b"TOKEN " + TOKEN.encode(), b"FAIL")),
        TokenError,
        "expired or was used",
    ),
}
"""What the guest may refuse, with what is raised."""


@pytest.mark.parametrize("cuts", [WHOLE, BYTES], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", GOOD)
def test_it_ends_well(name: str, cuts: Sequence[int]) -> None:
    client, rows, result = GOOD[name]
    script = Script(rows, cuts)
    assert play(client(), script) == result
    assert script.said == script.expected()


@pytest.mark.parametrize("cuts", [WHOLE, BYTES], ids=["whole", "bytes"])
@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_has_its_error(name: str, cuts: Sequence[int]) -> None:
    client, rows, kind, text = REFUSED[name]
    script = Script(rows, cuts)
    with pytest.raises(kind, match=text) as caught:
        play(client(), script)
    assert type(caught.value) is kind
    assert script.said == script.expected()  # FAIL after a wrong password, among others


GARBAGE = (b"PASX", b"<html>", b"VERSION_X", b"\xff" * 4, b"FAIK", b"TOKEM abc")


def lying(name: str, *answers: bytes) -> Iterator[tuple[int, Client, list[Row]]]:
    """What ends well, with another answer at each step, and nothing after it."""
    client, rows, _ = GOOD[name]
    for number, row in enumerate(rows):
        for answer in answers if row.answer else ():
            yield number, client, [*rows[:number], row._replace(answer=answer)]


@pytest.mark.parametrize("name", GOOD)
def test_garbage_at_every_step(name: str) -> None:
    """It is told as such, with the step."""
    for _, client, rows in lying(name, *GARBAGE):
        for cuts in (WHOLE, BYTES):
            with pytest.raises(ProtocolError, match=r"^the guest's (broker|session service) ") as caught:
                play(client(), Script(rows, cuts))
            assert type(caught.value) is ProtocolError


@pytest.mark.parametrize("name", GOOD)
def test_an_end_at_every_step(name: str) -> None:
    """Before an answer, and in the midst of one; only the probe of an older broker takes it for an answer."""
    for number, client, rows in lying(name, b"", b"P", b"V", b"T"):
        if name.startswith("the older version") and number and rows[0].said == b"VERSION":
            if rows[-1].answer in (b"", b"P"):
                assert play(client(), Script(rows)) == Agreement(again=True)
            continue
        whole = GOOD[name][1][number].answer
        if whole.startswith(rows[-1].answer):
            with pytest.raises(LostError, match=r"(service|broker) ended the connection in place of"):
                play(client(), Script(rows))


@settings(max_examples=sample(60, 5000), deadline=None)
@given(st.sampled_from(sorted(GOOD)), CUTS)
def test_no_cut_changes_a_result(name: str, cuts: list[int]) -> None:
    client, rows, result = GOOD[name]
    assert play(client(), Script(rows, cuts)) == result


@settings(max_examples=sample(60, 5000), deadline=None)
@given(st.sampled_from(sorted(REFUSED)), CUTS)
def test_no_cut_changes_a_refusal(name: str, cuts: list[int]) -> None:
    client, rows, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        play(client(), Script(rows, cuts))


@settings(max_examples=sample(100, 10000), deadline=None)
@given(st.sampled_from(sorted(GOOD)), st.lists(st.binary(max_size=20), min_size=8, max_size=8), CUTS)
def test_no_cut_changes_what_a_liar_gets(name: str, answers: list[bytes], cuts: list[int]) -> None:
    """Whatever a guest answers, the outcome is the same as of the same bytes whole."""
    client, rows, _ = GOOD[name]

    def outcome(cuts: Sequence[int]) -> str:
        lies = [row._replace(answer=answer or row.answer) for row, answer in zip(rows, answers, strict=False)]
        try:
            return repr(play(client(), Script(lies, cuts)))
        except (HvsockError, AssertionError) as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

    assert outcome(cuts) == outcome(WHOLE)


def test_it_never_reads_beyond_the_handshake() -> None:
    """What comes after the last answer is PSRP's."""
    client = SessionClient(TOKEN)
    stream = b"VERSION_2PASSPASS<DataAck"
    while not client.done:
        data, stream = stream[: client.turn.due], stream[client.turn.due :]
        client.receive(data)
    assert stream == b"<DataAck"


def test_an_empty_token() -> None:
    """Neither a pause nor the end is one."""
    client = BrokerClient(EMPTY, older=False)
    for answer in (b"VERS", b"ION_2", *[b"PASS"] * 3, b"CONF", b"TOKE", b"N "):
        client.receive(answer)
    client.pause()
    with pytest.raises(LostError, match="in place of the token"):
        client.end()


def test_credentials() -> None:
    assert "secret" not in repr(ANNA)
    assert TOKEN not in repr(Agreement(TOKEN))
    assert Credentials.of("anna", "x") == Credentials("anna", "x")
    assert Credentials.of("CORP\\anna") == Credentials("anna", domain="CORP")
    assert Credentials.of("anna@corp.example") == Credentials("anna", domain="corp.example")
    with pytest.raises(UsageError, match="needs the name of a user"):
        Credentials("")
    with pytest.raises(UsageError, match="cannot contain NUL"):
        Credentials("anna", "a\0b")
    with pytest.raises(UsageError, match="a password has characters that are none"):
        Credentials("anna", "\ud800")
    with pytest.raises(UsageError, match="a user has at most 512 characters"):
        Credentials("a" * 513)
    with pytest.raises(UsageError, match="a configuration has at most"):
        BrokerClient(ANNA, "a" * 513)
    with pytest.raises(UsageError, match="no authentication"):
        BrokerClient(ANNA, older=True, require_authentication=True)


def test_a_side_is_fed_as_it_asks() -> None:
    client = SessionClient(TOKEN)
    with pytest.raises(UsageError, match="not done"):
        _ = client.result
    with pytest.raises(UsageError, match="5 bytes were read where 1 to 4 are due"):
        client.receive(b"VERSI")
    with pytest.raises(UsageError, match="0 bytes"):
        client.receive(b"")
    client.pause()  # nothing there ends with a pause
    client.receive(b"VERS")
    with pytest.raises(NotImplementedError):
        Lockstep[int]()
    client.receive(b"ION_2")
    client.receive(b"PASS")
    client.receive(b"PASS")
    with pytest.raises(UsageError, match="over"):
        client.end()
