"""`import hvsock` on Windows: what the module has there, and that nothing of it needs Linux."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """if True:
    import asyncio, difflib, json, platform, socket, ssl, subprocess, sys, unicodedata
    sys.platform = "win32"
    import hvsock
    names = ("socket", "create_connection", "create_server", "resolve", "open_connection", "start_server")
    found = {name: getattr(hvsock, name).__code__.co_filename if name != "socket" else "" for name in names}
    found["socket"] = sys.modules["hvsock.sockets.hyperv.socket"].socket is hvsock.socket
    import hvsock.windows.names
    print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it plays Windows; run this test elsewhere")
def test_what_windows_has() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("socket") is True
    for name, path in found.items():
        assert "hyperv" in path, name
