"""Whom commands run as, and SFTP."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from hvsock.errors import NotFoundError, RefusedError, StateError

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH where the agent itself has none."""
INHERITED: Final = (
    *("PATH", "TZ", "LANG", "HVSOCK_DIR", "HVSOCK_PARTITION", "HVSOCK_TRANSPORT"),
    *("HVSOCK_CONFIG", "HVSOCK_PROFILE"),
)
"""What commands get of the agent's own environment."""


@dataclass(frozen=True, slots=True)
class User:
    """A user of the guest.

    Attributes:
        name, uid, gid, home, shell: as in the guest's list of users.
        other: whether the agent is somebody else.
    """

    name: str
    uid: int
    gid: int
    home: str
    shell: str
    other: bool

    def groups(self) -> list[int]:
        """All groups of the user."""
        return os.getgrouplist(self.name, self.gid)

    def environment(self, agent: Mapping[str, str]) -> dict[str, str]:
        """The environment of the user's commands.

        Args:
            agent: that of the agent.
        """
        mine = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {"PATH": SEARCH_PATH, **{name: agent[name] for name in INHERITED if name in agent}, **mine}


def own_user() -> User:
    """The agent's user, also where the guest has no list of users."""
    uid = os.geteuid()
    try:
        return _user(pwd.getpwuid(uid))
    except KeyError:
        return User("root" if uid == 0 else str(uid), uid, os.getegid(), "/", "/bin/sh", other=False)


def find_user(name: str) -> User:
    """The user called `name`.

    Raises:
        NotFoundError: there is none.
        RefusedError: the agent is another and cannot become that.
    """
    own = own_user()
    if name == own.name:
        return own
    try:
        found = _user(pwd.getpwnam(name))
    except (KeyError, ValueError):
        raise NotFoundError(f"there is no user {name!r} in the guest") from None
    if found.other and own.uid != 0:
        raise RefusedError(f"the agent runs as {own.name}, and so cannot become {name!r}")
    return found


def _user(entry: Any) -> User:
    shell = entry.pw_shell or "/bin/sh"
    return User(
        entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir or "/", shell, entry.pw_uid != os.geteuid()
    )


def become(user: User) -> None:
    """Have this process be `user` for good, in the user's home, or in / where that cannot be entered.

    A process that became another cannot be looked into by the others of that user: the kernel sees to it.

    Raises:
        OSError: this process may not, or the user has groups that are none.
        StateError: it could still be somebody else.
    """
    if user.other:
        os.setgroups(user.groups())
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        if os.getresuid() != (user.uid,) * 3 or os.getresgid() != (user.gid,) * 3:
            raise StateError(f"this process did not become {user.name}")
    try:
        os.chdir(user.home)
    except OSError:
        os.chdir("/")
