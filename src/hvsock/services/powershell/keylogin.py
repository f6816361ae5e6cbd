"""Logging in by the host's key in place of a password: the password is a signature of the user's name.

The key is the one that the host gives to the guest in Direct's hand-over. The signature is good for one user of
one guest, since the host has another key for each; it is worth nothing to whoever gets to see it and is not the
host, for a guest's broker listens to its host alone.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Final

PREFIX: Final = "hvsock-key:"
"""What such a password begins with."""
_STATEMENT: Final = b"hvsock: PowerShell Direct as "
_ALGORITHM: Final = b"ssh-ed25519"
_SIGNATURE_HEAD: Final = struct.pack(">I", len(_ALGORITHM)) + _ALGORITHM + struct.pack(">I", 64)
"""What the 64 bytes of a signature come after (RFC 8709, section 6)."""


def signed(private: str, user: str) -> str:
    """The password for `user`.

    Args:
        private: the host's private key, in OpenSSH's format.
        user: whom to be.
    """
    import asyncssh

    signature = asyncssh.import_private_key(private).sign(_STATEMENT + user.encode(), _ALGORITHM)
    return PREFIX + base64.b64encode(signature).decode("ascii")


def is_signed(public: str, user: str, password: str) -> bool:
    """Whether `password` was made for `user` by the owner of the key `public`."""
    # here, as an agent that is never asked is smaller by 5 MiB; asyncssh would be 10 more, and take seconds
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        signature = base64.b64decode(password.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    if not signature.startswith(_SIGNATURE_HEAD):
        return False
    try:
        key = load_ssh_public_key(public.encode())
        if not isinstance(key, Ed25519PublicKey):
            return False
        key.verify(signature.removeprefix(_SIGNATURE_HEAD), _STATEMENT + user.encode())
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
