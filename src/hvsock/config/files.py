"""Where the configuration lies, and the profile of this process.

The first file that is there counts, alone. It is read once for each process and choice.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from hvsock.errors import UsageError

from .settings import Settings

CONFIG_VARIABLE: Final = "HVSOCK_CONFIG"
"""Environment variable: the file, and no other; /dev/null for none."""
PROFILE_VARIABLE: Final = "HVSOCK_PROFILE"
"""Environment variable: the name of the profile."""
MAX_FILE_BYTES: Final = 256 * 1024
"""Longest file: a thousand VMs have some 100 bytes each."""
_FOR_ALL: Final = "/etc/hvsock/config.toml"


def candidates(environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The files that are looked for, in that order.

    HVSOCK_CONFIG alone where it is set; else hvsock/config.toml in $XDG_CONFIG_HOME or ~/.config, then that of
    /etc.
    """
    environ = os.environ if environ is None else environ
    if chosen := environ.get(CONFIG_VARIABLE):
        return (os.path.abspath(chosen),)
    if sys.platform == "win32":
        folder = environ.get("APPDATA", "")
        return (os.path.join(folder, "hvsock", "config.toml"),) if os.path.isabs(folder) else ()
    folder = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(folder):  # others are to be ignored, by the XDG base directory specification
        folder = os.path.join(environ.get("HOME", ""), ".config")
    own = (os.path.join(folder, "hvsock", "config.toml"),) if os.path.isabs(folder) else ()
    return (*own, _FOR_ALL)


def settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The profile of this process: HVSOCK_PROFILE's, else the one that the file chooses.

    Raises:
        UsageError: the file of HVSOCK_CONFIG is not there, a file cannot be read or has mistakes, or there is no
            profile of that name.
    """
    environ = os.environ if environ is None else environ
    return _settings(
        candidates(environ), bool(environ.get(CONFIG_VARIABLE)), environ.get(PROFILE_VARIABLE) or None
    )


@lru_cache(maxsize=16)
def _settings(files: tuple[str, ...], is_wanted: bool, name: str | None) -> Settings:
    for file in files:
        text = _read(file, is_wanted)
        if text is None:
            continue
        if not text.strip():  # as for /dev/null
            if name is None:
                return Settings()
            raise UsageError(f"{PROFILE_VARIABLE} is {name!r}, and {file} is empty")
        from .schema import parse

        return parse(text, file).chosen(name)
    if is_wanted:
        raise UsageError(f"{CONFIG_VARIABLE} names {files[0]}, which is not there")
    if name is not None:
        where = " and ".join(files)
        raise UsageError(f"{PROFILE_VARIABLE} is {name!r}, and there is no configuration: looked for {where}")
    return Settings()


def _read(file: str, is_wanted: bool) -> str | None:
    """The text of a file; None where there is none.

    Args:
        file: its path.
        is_wanted: whether somebody named it; else it is not there either in a folder that cannot be entered.

    Raises:
        UsageError: it is no file, or it cannot be read.
    """
    try:
        # never waiting, should it be a pipe
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) and file != os.devnull:
                raise UsageError(f"{file}: a configuration is a file, and this is none")
            data = b""
            while len(data) <= MAX_FILE_BYTES and (more := os.read(descriptor, MAX_FILE_BYTES + 1)):
                data += more
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        if not is_wanted and _is_out_of_reach(file):  # services run with the home folder of somebody else
            return None
        raise UsageError(f"{file}: the configuration cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{file}: a configuration has at most {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: it is not UTF-8 at byte {error.start}") from None


def _is_out_of_reach(file: str) -> bool:
    """Whether this user may not even know whether a file is there."""
    try:
        os.stat(file)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return False
