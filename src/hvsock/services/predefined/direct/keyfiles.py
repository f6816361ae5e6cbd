"""Files with keys: private, and whole or not there."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile

from hvsock.errors import StateError

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


def private_folder(path: str) -> str:
    """Make the folder at `path` where it is missing, for its owner alone.

    Raises:
        StateError: others may write there, or it is somebody else's.
    """
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.stat(path)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise StateError(f"{path} holds keys, and is not this user's alone; remove it, or: chmod 700 {path}")
    return path


def read_text(path: str) -> str | None:
    """What is in the file, or None where there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write_private(path: str, content: bytes, *, replace: bool = True) -> bool:
    """Write a file of mode 0600 that is there whole, or as it was before.

    Args:
        path: the file.
        content: what it gets.
        replace: whether one that is there is replaced.

    Returns:
        Whether it was written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        return True
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def key_pair(path: str) -> tuple[str, str]:
    """The ed25519 key pair in the file, made on first use; two processes that make it at once get the same.

    Returns:
        The private key in OpenSSH's format, and the public one as "ssh-ed25519 AAAA...".

    Raises:
        StateError: the file holds none.
    """
    import asyncssh

    text = read_text(path)
    if text is None:
        made = asyncssh.generate_private_key("ssh-ed25519")
        write_private(path, made.export_private_key(), replace=False)
        text = read_text(path) or ""
    try:
        key = asyncssh.import_private_key(text)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise StateError(f"{path} holds no key ({error}); remove it, and another is made") from None
    public = " ".join(key.export_public_key().decode("ascii").split()[:2])
    return text, public
