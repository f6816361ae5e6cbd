"""`hvsock heartbeat --watch`, of `make soak`: once it did not end as it should, and nobody saw why."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

assert sys.platform == "linux"

from hvsock.testing.fabric import EmbeddedFabric
from tests.cli.helpers import started
from tests.cli.test_heartbeat import made as made
from tests.cli.test_heartbeat import serving


def test_heartbeats_are_watched(made: EmbeddedFabric, tmp_path: Path) -> None:
    guest = made.create_partition("web01")
    watching = ("heartbeat", "web01", "--watch", "--json", "--interval", "0.1")
    with started(*watching) as process:
        assert process.stdout is not None

        def until(status: str) -> dict[str, Any]:
            assert process.stdout is not None
            for line in process.stdout:
                (found,) = json.loads(line)["heartbeats"]
                if found["primary_status"] == status:
                    return dict(found)
            raise AssertionError("it ended")

        until("No Contact")
        with serving(guest.folder, tmp_path):
            until("OK")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
