"""How a guest answers clients of PowerShell Direct, on either connection, without I/O or a clock.

What the guest takes for a message: a word (VERSION, EMPTYPW, ...) ends with its last byte. A text (domain, user,
password, configuration) has no end of its own: it is what came until nothing more came for a while, as the client
waits for an answer then; whoever drives this tells the pause. A text has 2 to MAX_TEXT_BYTES bytes of UTF-16LE.
A token has as many characters as those that the guest gives. Every refusal is the word FAIL.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final

from hvsock.errors import LostError, ProtocolError, RefusedError, UsageError

from .handshake import (
    CONFIGURATION,
    CONFIGURATION_FOLLOWS,
    EMPTY_PASSWORD,
    FAIL,
    LOCAL_DOMAIN,
    MAX_TEXT_BYTES,
    NO_CONFIGURATION,
    PASS,
    PASSWORD_FOLLOWS,
    TOKEN,
    VERSION,
    VERSION_2,
    ConfigurationError,
    CredentialError,
    Credentials,
    OlderVersionError,
    TokenError,
    VersionError,
)
from .lockstep import Lockstep, R, Script, Signal, Turn

FAREWELL_BYTES: Final = 16
"""Most that is read after FAIL: a client says FAIL, too."""


class _GuestSide(Lockstep[R]):
    """Either connection: it begins with the version, and ends with FAIL where something is wrong."""

    PEER = "the client"

    def __init__(self, older: bool) -> None:
        self._older = older
        super().__init__()

    def guarded(self, conversation: Script[R]) -> Script[R]:
        """A conversation, and FAIL in place of the answer that is due where it comes to an error."""
        try:
            return (yield from conversation)
        except (ProtocolError, RefusedError):
            yield Turn(FAIL, FAREWELL_BYTES, "the end", pausable=True)
            raise

    def version(self) -> Script[bytes]:
        """Read and answer the version; returns what an older client said in its place, or b"".

        Raises:
            OlderVersionError: an older client, and it is not let in.
            VersionError: the client wants another version.
        """
        what = "the question for the version"
        got = b""
        while got != VERSION:
            data = yield Turn(b"", len(VERSION) - len(got), what)
            if data is Signal.END:
                raise self.lost(what)
            if isinstance(data, Signal):
                continue
            got += data
            if not VERSION.startswith(got):
                if not self._older:
                    raise OlderVersionError("the client speaks the older version, which is not let in")
                return got
        try:
            yield from self.word(VERSION_2, (VERSION_2,), "the version")
        except ProtocolError:
            raise VersionError("the client wants another version than 2") from None
        return b""

    def text(self, send: bytes, what: str, begun: bytes = b"") -> Script[str]:
        """Send, and read a text."""
        got = begun
        while True:
            data = yield Turn(send, MAX_TEXT_BYTES + 1 - len(got), what, pausable=True)
            send = b""
            if isinstance(data, Signal):
                if got:
                    break  # at the end, too: an older client says no more than a configuration's name
                if data is Signal.END:
                    raise self.lost(what)
                continue
            got += data
            if len(got) > MAX_TEXT_BYTES:
                raise ProtocolError(f"{self.PEER} has sent {what} of more than {MAX_TEXT_BYTES} bytes")
        try:
            return got.decode("utf-16-le").rstrip("\x00")
        except UnicodeDecodeError:
            raise ProtocolError(f"{self.PEER} has sent {what} that is no UTF-16") from None


@dataclass(frozen=True, slots=True)
class Admission:
    """Somebody whom the broker let in.

    Attributes:
        configuration: the name of the configuration; empty for the default one.
        older: whether the client speaks the older version, and so comes without a token.
    """

    configuration: str
    older: bool


class BrokerSide(_GuestSide[Admission]):
    """The broker on the first connection.

    There are two turns with a verdict: in the first, :attr:`claim` is who wants in, and :meth:`admit` lets them;
    in the second, :attr:`admission` is there, too, and its token, which is sent next, has to be good from then on.

    Args:
        configurations: names of configurations that there are.
        older: let clients of the older version in, whose sessions have no token.
    """

    def __init__(self, configurations: Container[str] = (), *, older: bool = False) -> None:
        self._configurations = configurations
        self._token: str | None = None
        self.claim: Credentials | None = None
        self.admission: Admission | None = None
        super().__init__(older)

    def admit(self, token: str) -> None:
        """Let the claim in, with the token for its session, which a client of the older version does not get."""
        self._token = token

    def script(self) -> Script[Admission]:
        """Agree on the version, hear the credentials, give the token."""
        return (yield from self.guarded(self._conversation()))

    def _conversation(self) -> Script[Admission]:
        begun = yield from self.version()
        domain = yield from self.text(b"" if begun else PASS, "the domain", begun)
        user = yield from self.text(PASS, "the user")
        words = (EMPTY_PASSWORD, PASSWORD_FOLLOWS)
        password = ""
        if (yield from self.word(PASS, words, "whether there is a password")) == PASSWORD_FOLLOWS:
            password = yield from self.text(PASS, "the password")
        try:
            self.claim = Credentials(user, password, "" if domain == LOCAL_DOMAIN else domain)
        except UsageError:
            raise ProtocolError("the client has sent credentials that are none") from None
        yield Turn(verdict=True)
        if self._token is None:
            raise CredentialError(f"{user!r} is not let in")
        words = (NO_CONFIGURATION, CONFIGURATION_FOLLOWS)
        configuration = ""
        if (yield from self.word(CONFIGURATION, words, "whether one is configured")) == CONFIGURATION_FOLLOWS:
            configuration = yield from self.text(PASS, "the configuration")
            if configuration not in self._configurations:
                raise ConfigurationError(f"there is no configuration {configuration!r}")
        self.admission = Admission(configuration, bool(begun))
        yield Turn(verdict=True)
        if not begun:
            answer = yield from self.word(TOKEN + self._token.encode("ascii"), (PASS, FAIL), "the token's receipt")
            if answer == FAIL:
                raise LostError("the client does not want its token")
        return self.admission


@dataclass(frozen=True, slots=True)
class Beginning:
    """A session begins.

    Attributes:
        rest: what the client has said of it already; only one of the older version has.
        older: whether it came without a token.
    """

    rest: bytes = field(default=b"", repr=False)
    older: bool = False


class SessionSide(_GuestSide[Beginning]):
    """The session service on the second connection.

    In the turn whose `verdict` is set, :attr:`token` is what the client gave, and :meth:`accept` takes it.

    Args:
        characters: how many a token has.
        older: let clients of the older version in, which have none.
    """

    def __init__(self, characters: int, *, older: bool = False) -> None:
        self._characters = characters
        self._accepted = False
        self.token = ""
        super().__init__(older)

    def accept(self) -> None:
        """Take the token."""
        self._accepted = True

    def script(self) -> Script[Beginning]:
        """Agree on the version, and hear the token."""
        return (yield from self.guarded(self._conversation()))

    def _conversation(self) -> Script[Beginning]:
        begun = yield from self.version()
        if begun:
            return Beginning(begun, older=True)
        yield from self.word(PASS, (TOKEN,), "the token")
        got = b""
        while len(got) < self._characters:
            data = yield Turn(b"", self._characters - len(got), "the token", pausable=bool(got))
            if isinstance(data, Signal):
                if got or data is Signal.END:
                    raise TokenError("the client has sent a token that is too short")
                continue
            got += data
        self.token = got.decode("ascii", "replace")
        yield Turn(verdict=True)
        if not self._accepted:
            raise TokenError("the client has sent a token that is not taken")
        yield from self.say(PASS)
        return Beginning()
