"""The conformance suite over vsock_loopback; prints one line of JSON with the result of each check.

Runs in a guest, with HVSOCK_TRANSPORT=vsock.

Usage: vsock_conformance.py [CHECK...]
"""

from __future__ import annotations

import json
import sys
import time

import hvsock
from hvsock.addresses import SERVICE_WILDCARD
from hvsock.testing import Features, applicable_checks, check_stream

assert sys.platform == "linux"

FEATURES = Features(resets=False, delivers_before_reset=False)
"""Linux shows a reset of AF_VSOCK as an end of stream, and sends none for data left unread at a close."""
WAIT_SECONDS = 30.0
"""For one step; a guest under software emulation is slow."""


def pair() -> tuple[hvsock.socket, hvsock.socket]:
    """A loopback connection."""
    with hvsock.socket() as listener:
        listener.bind((hvsock.HV_GUID_LOOPBACK, SERVICE_WILDCARD))
        listener.listen()
        near = hvsock.socket()
        near.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname()[1]))
        far, _ = listener.accept()
    return near, far


def main() -> None:
    """Run the checks, every one whatever became of the others."""
    results = {}
    for name in sys.argv[1:] or applicable_checks(FEATURES):
        started = time.monotonic()
        try:
            check_stream(pair, features=FEATURES, checks=[name], wait_seconds=WAIT_SECONDS)
            results[name] = "passed"
        except AssertionError as error:
            results[name] = str(error)
        print(f"{name}: {results[name]} ({time.monotonic() - started:.1f} s)", file=sys.stderr, flush=True)
    print(json.dumps({"checks": results}), flush=True)


if __name__ == "__main__":
    main()
