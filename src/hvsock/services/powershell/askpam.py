"""Asks PAM about one password, as a program of its own: `python -m hvsock.services.powershell.askpam`.

PAM's modules wait for seconds, may hang, and are code of others. Here they harm nobody, and can be killed.
Standard input is the user's name, NUL, and the password. Standard output is one line: "yes", "no: REASON", or
"cannot: REASON" where there is no PAM.
"""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from typing import Final

OWN_SERVICE: Final = "hvsock"
"""The PAM service that is asked where the guest has it, in /etc/pam.d."""
SERVICE: Final = "login"
"""The one that is asked else; every guest with PAM has it."""


def answer(user: str, password: str) -> str:
    """The line that is printed."""
    if find_library("pam") is None:
        return "cannot: this guest has no PAM (libpam.so.0)"
    try:
        import pam
    except ImportError:
        return "cannot: this guest has no python-pam"
    own = os.path.exists(f"/etc/pam.d/{OWN_SERVICE}")
    asked = pam.PamAuthenticator()
    # there is nothing that credentials would be for: the session is another process
    if asked.authenticate(user, password, OWN_SERVICE if own else SERVICE, resetcreds=False):
        return "yes"
    return f"no: {asked.reason}"


def main() -> None:
    """Answer one question."""
    user, _, password = sys.stdin.buffer.read().decode("utf-8").partition("\0")
    print(answer(user, password))


if __name__ == "__main__":
    main()
