"""How a client opens a session of PowerShell Direct: what it says on either connection, without I/O or a clock.

The first connection goes to the guest's broker, which checks credentials and gives a token (version 2); the second
to the session service, which takes the token, and carries the session. The older version has no tokens and no
question for the version: its broker takes that question for a domain, so a client that finds one ends the attempt
with a user that nobody can have, connects again, and gives the credentials at once.

Words are ASCII; domain, user, password and the configuration's name are UTF-16LE. Source: PowerShell's
RemoteSessionHyperVSocket.cs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from string import ascii_letters, digits
from typing import Final, Self

from hvsock.errors import LostError, NegotiationError, NotReadyError, ProtocolError, RefusedError, UsageError

from .lockstep import Lockstep, Script, Signal, Turn

VERSION: Final = b"VERSION"
"""The question for the version; an older broker takes it for a domain."""
VERSION_2: Final = b"VERSION_2"
PASS: Final = b"PASS"
FAIL: Final = b"FAIL"
CONFIGURATION: Final = b"CONF"
"""In place of PASS: the password is right, and a configuration may be named."""
EMPTY_PASSWORD: Final = b"EMPTYPW"
PASSWORD_FOLLOWS: Final = b"NONEMPTYPW"
NO_CONFIGURATION: Final = b"EMPTYCF"
CONFIGURATION_FOLLOWS: Final = b"NONEMPTYCF"
TOKEN: Final = b"TOKEN "

NOBODY: Final = "?<PSDirectVMLegacy>"
"""A user that nobody can have, by which the attempt with an older broker is ended."""
LOCAL_DOMAIN: Final = "localhost"
"""The domain where none is given."""
MAX_TEXT_BYTES: Final = 1024
"""Longest domain, user, password or configuration: Windows has 256 characters for each, and some room."""
MAX_TOKEN_MESSAGE_BYTES: Final = 1024
"""Longest message with a token, as the original reads it; a token has some 50 characters."""

_VERSIONS: Final = tuple(b"VERSION_" + bytes((digit,)) for digit in digits.encode())
_TOKEN_CHARACTERS: Final = (ascii_letters + digits + "+/=").encode()
_TOKEN_ENDS: Final = b"\x00 \r\n\t"


class CredentialError(RefusedError):
    """The guest does not take the user and password."""


class ConfigurationError(RefusedError):
    """The guest has no such configuration, or is too old to have any."""


class TokenError(RefusedError):
    """The session service does not take the token: it is used, expired or another's."""


class VersionError(NegotiationError):
    """The other side refuses the version that this one speaks."""


class OlderVersionError(NegotiationError):
    """The other side speaks the older version alone, and that is forbidden."""


class SilenceError(NotReadyError):
    """The other side did not answer in time."""


def encoded(text: str, what: str) -> bytes:
    """`text` as it travels.

    Raises:
        UsageError: it is too long, or no text.
    """
    try:
        data = text.encode("utf-16-le")
    except UnicodeEncodeError:
        raise UsageError(f"{what} has characters that are none") from None
    if "\x00" in text:
        raise UsageError(f"{what} cannot contain NUL")
    if len(data) > MAX_TEXT_BYTES:
        raise UsageError(f"{what} has at most {MAX_TEXT_BYTES // 2} characters (UTF-16), not {len(data) // 2}")
    return data


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who wants a session. The password is not in its repr.

    Attributes:
        user: the user's name, not empty.
        password: may be empty.
        domain: empty for the guest's own users.

    Raises:
        UsageError: one of them cannot be sent.
    """

    user: str
    password: str = field(default="", repr=False)
    domain: str = ""

    def __post_init__(self) -> None:
        if not self.user:
            raise UsageError("PowerShell Direct needs the name of a user")
        for text, what in ((self.user, "a user"), (self.password, "a password"), (self.domain, "a domain")):
            encoded(text, what)

    @classmethod
    def of(cls, name: str, password: str = "") -> Self:
        r"""Credentials of a name as PowerShell takes it: USER, DOMAIN\USER or USER@DOMAIN.

        Raises:
            UsageError: it is none of them.
        """
        domain, backslash, user = name.partition("\\")
        if backslash:
            return cls(user, password, domain)
        user, at, domain = name.rpartition("@")
        return cls(user, password, domain) if at else cls(name, password)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a client and a broker agreed on.

    Attributes:
        token: for the session service; None in the older version.
        again: nothing yet: the broker speaks the older version, so connect again and speak that.
    """

    token: str | None = field(default=None, repr=False)
    again: bool = False


class BrokerClient(Lockstep[Agreement]):
    """The client on the first connection.

    Args:
        credentials: who wants a session.
        configuration: the name of a session configuration; empty for the default one.
        older: speak the older version, since the broker was found to.
        require_authentication: refuse to speak it, since it leaves the second connection to anybody.

    Raises:
        UsageError: the configuration cannot be sent.
    """

    PEER = "the guest's broker"

    def __init__(
        self,
        credentials: Credentials,
        configuration: str = "",
        *,
        older: bool = False,
        require_authentication: bool = False,
    ) -> None:
        if older and require_authentication:
            raise UsageError("the older version has no authentication of sessions")
        self._credentials = credentials
        self._configuration = configuration
        self._configuration_data = encoded(configuration, "a configuration")
        self._older = older
        self._required = require_authentication
        super().__init__()

    def script(self) -> Script[Agreement]:
        """Agree on the version, log in, get the token."""
        if not self._older:
            answer = yield from self.word(VERSION, (*_VERSIONS, PASS, FAIL), "the answer to the version")
            if answer in (PASS, FAIL):
                yield from self._leave_older()
                if self._required:
                    raise OlderVersionError(
                        "the guest speaks the older version of PowerShell Direct, which leaves its session to "
                        "whoever connects next, and authentication is required; update the guest"
                    )
                return Agreement(again=True)
            yield from _agree_on_version(self)
        last = yield from self._log_in()
        if self._older:
            yield from self.say(last)
            return Agreement()
        token = yield from self._token(last)
        yield from self.say(PASS)
        return Agreement(token)

    def _leave_older(self) -> Script[None]:
        """End the attempt as its broker expects it; what it thinks of nobody does not matter."""
        try:
            nobody = NOBODY.encode("utf-16-le")
            yield from self.word(nobody, (PASS, FAIL, CONFIGURATION), "the answer to no user")
            yield from self.word(EMPTY_PASSWORD, (FAIL, PASS, CONFIGURATION), "the answer to no password")
        except LostError:
            return
        yield from self.say(FAIL)

    def _log_in(self) -> Script[bytes]:
        """Give the credentials; returns what is to be said last."""
        given = self._credentials
        yield from self._passed((given.domain or LOCAL_DOMAIN).encode("utf-16-le"), "the domain")
        yield from self._passed(given.user.encode("utf-16-le"), "the user")
        send = EMPTY_PASSWORD
        if given.password:
            yield from self._passed(PASSWORD_FOLLOWS, "the password's notice")
            send = given.password.encode("utf-16-le")
        answer = yield from self.word(send, (CONFIGURATION, PASS, FAIL), "the answer to the password")
        if answer == FAIL:
            yield from self.say(FAIL)
            raise CredentialError(
                f"the guest does not let {given.user!r} in: name or password is wrong, or its agent's log has more"
            )
        if not self._configuration:
            return NO_CONFIGURATION if answer == CONFIGURATION else PASS
        if answer != CONFIGURATION:
            yield from self.say(FAIL)
            raise ConfigurationError(
                f"the guest's PowerShell Direct is too old to have the configuration {self._configuration!r}"
            )
        yield from self._passed(CONFIGURATION_FOLLOWS, "the configuration's notice")
        return self._configuration_data

    def _passed(self, send: bytes, what: str) -> Script[None]:
        if (yield from self.word(send, (PASS, FAIL), f"the answer to {what}")) == FAIL:
            yield from self.say(FAIL)
            raise CredentialError(f"the guest's broker refuses {what}")

    def _token(self, send: bytes) -> Script[str]:
        """Read the token. It ends with its padding, with a blank or NUL after it, at a pause or at the end."""
        what = "the token"
        if (yield from self.word(send, (TOKEN, FAIL), what)) == FAIL:
            if self._configuration:
                raise ConfigurationError(f"the guest has no configuration {self._configuration!r}")
            raise CredentialError("the guest's broker gives no token; its agent's log may say why")
        token = bytearray()
        while True:
            # only what is there once it has begun can end it
            data = yield Turn(b"", MAX_TOKEN_MESSAGE_BYTES - len(TOKEN) - len(token), what, bool(token))
            if isinstance(data, Signal):
                if token:
                    return token.decode("ascii")
                if data is Signal.END:
                    raise self.lost(what)
                continue
            for byte in data:
                if token and byte in _TOKEN_ENDS:
                    return token.decode("ascii")
                if byte not in _TOKEN_CHARACTERS or (token.endswith(b"=") and byte != ord("=")):
                    raise ProtocolError("the guest's broker gives a token that is no base64")
                token.append(byte)
                if byte == ord("=") and len(token) % 4 == 0:
                    return token.decode("ascii")
            if len(token) == MAX_TOKEN_MESSAGE_BYTES - len(TOKEN):
                raise ProtocolError(f"the guest's broker gives a token of more than {len(token)} characters")


@dataclass(frozen=True, slots=True)
class Ready:
    """The session may begin: what comes next on the connection is PSRP."""


class SessionClient(Lockstep[Ready]):
    """The client on the second connection; in the older version it says nothing there.

    Args:
        token: what the broker gave.
    """

    PEER = "the guest's session service"

    def __init__(self, token: str) -> None:
        self._token = token.encode("ascii")
        super().__init__()

    def script(self) -> Script[Ready]:
        """Agree on the version, and give the token."""
        if (yield from self.word(VERSION, (*_VERSIONS, FAIL), "the answer to the version")) == FAIL:
            raise VersionError("the guest's session service refuses to tell its version")
        yield from _agree_on_version(self)
        if (yield from self.word(TOKEN + self._token, (PASS, FAIL), "the answer to the token")) == FAIL:
            raise TokenError("the guest's session service refuses the token: it expired or was used; try again")
        return Ready()


def _agree_on_version(side: Lockstep[Agreement] | Lockstep[Ready]) -> Script[None]:
    """Say that version 2 it is, after an answer like VERSION_2 or VERSION_10."""
    side.skip_version()
    if (yield from side.word(VERSION_2, (PASS, FAIL), "the answer to version 2")) == FAIL:
        raise VersionError(f"{side.PEER} refuses version 2 of PowerShell Direct, which is the newest known here")
