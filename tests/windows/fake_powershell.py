"""What stands in for powershell.exe in tests: it checks how it is asked, and answers as the test says.

It is run as ``python fake_powershell.py HOW -NoProfile -EncodedCommand BASE64``.
"""

from __future__ import annotations

import base64
import json
import sys
import time


def main() -> None:
    """Answer in the way that the first argument says."""
    how, *arguments = sys.argv[1:]
    script = base64.b64decode(arguments[arguments.index("-EncodedCommand") + 1]).decode("utf-16-le")
    assert script.count("{") == script.count("}")
    assert script.isascii()
    if how == "silent":
        time.sleep(600)
    if how == "endless":
        while True:
            sys.stdout.write("x" * 65536)
    answers = {
        "vms": {"found": [{"id": "24A3451C-4180-42BD-83A7-6880374E886C", "name": "wéb01", "state": "Running"}]},
        "script": {"found": [script]},
        "denied": {
            "error": "You may\nnot.",
            "category": "PermissionDenied",
            "id": "AccessDenied,X",
        },
        "module": {
            "error": "No Get-VM.",
            "category": "ObjectNotFound",
            "id": "CommandNotFoundException",
        },
        "failed": {"error": "It broke.", "category": "NotSpecified", "id": "X"},
        "other": {"found": 7},
        "strange": {"found": [{"id": "none", "name": "x", "state": "x"}]},
    }
    text = json.dumps(answers[how], ensure_ascii=False) if how in answers else "At line:1 char:1"
    sys.stdout.buffer.write(b"\xef\xbb\xbf" + text.encode() + b"\r\n")


main()
