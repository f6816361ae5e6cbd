"""Containers made by plain Linux namespaces, for tests: nothing but `unshare` and `mount`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

assert sys.platform == "linux"

NAMESPACES = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork")
"""What a container has for itself; `unshare` of util-linux and of busybox take these words."""


def container_command(partition: str, hidden: str, command: Sequence[str]) -> list[str]:
    """A command that runs `command` in a container, as root.

    The container has the folder `partition` at /mnt, and nothing of what is in `hidden`, a folder that holds the
    fabric and all that its host has of it.
    """
    script = f"""
        mount -t proc proc /proc &&
        mount --bind {shlex.quote(partition)} /mnt && mount -o remount,bind,ro /mnt &&
        mount -t tmpfs tmpfs {shlex.quote(hidden)} &&
        HVSOCK_PARTITION=/mnt HVSOCK_DIR=/nowhere exec {shlex.join(command)}
    """
    return ["unshare", *NAMESPACES, "sh", "-c", "mount --make-rprivate / 2> /dev/null; " + script]


def missing() -> str | None:
    """Why there can be no containers here; None where there can."""
    if os.geteuid() != 0:
        return "containers by unshare take root: run the tests as root"
    try:
        done = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no unshare; as root: apt-get install -y util-linux"
    return None if done.returncode == 0 else f"namespaces are not allowed here: {done.stderr.strip()}"
