"""The project's systemd units under systemd itself, as the first process of namespaces: they become active.

No namespace has an AF_VSOCK of its own: so the fabric is that of a bare host here, without --uplink, and the agent
serves a partition.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

ROOT: Final = Path(__file__).parents[2]
UNITS: Final = (
    *(ROOT / "examples" / "containers" / name for name in ("hvsock-fabric.service", "in-partition@.service")),
    ROOT / "src" / "hvsock" / "services" / "hvsock-agent.service",
)
SYSTEMD: Final = "/lib/systemd/systemd"
BOX: Final = "22222222-3333-4444-8555-666666666666"
UNIT: Final = f"in-partition@{BOX}"
NAMESPACES: Final = ("--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "--cgroup")
PATIENCE: Final = 120.0
"""Seconds; all of it takes some five."""
END: Final = "that was all"


def missing() -> str | None:
    """Why systemd cannot be started here; None where it can."""
    if os.geteuid() != 0:
        return "namespaces for systemd take root: run the tests as root"
    if not os.path.exists(SYSTEMD):
        return "systemd is missing; as root: apt-get install -y systemd"
    if not cgroups():
        return "no cgroups are mounted in /sys/fs/cgroup"
    return None


def cgroups() -> list[Path]:
    """The roots of this machine's hierarchies of cgroups."""
    top = Path("/sys/fs/cgroup")
    if top.joinpath("cgroup.procs").exists():
        return [top]
    return [path for path in top.glob("*") if path.joinpath("cgroup.procs").exists() and not path.is_symlink()]


_WHY_NOT: Final = missing()
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(300),
    pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT)),
]


def inside(folder: Path) -> str:
    """What becomes systemd: it has /run, /tmp, /dev, /var/lib and its own configuration for itself."""
    hvsock = Path(sys.executable).with_name("hvsock")
    return f"""
        set -e
        mount --make-rprivate /
        mount -t proc proc /proc
        mount -t tmpfs -o mode=755 tmpfs {folder}/dev
        for name in null zero full random urandom tty; do
            touch {folder}/dev/$name
            mount --bind /dev/$name {folder}/dev/$name
        done
        mkdir {folder}/dev/shm {folder}/dev/pts
        touch {folder}/dev/console
        mount --bind {folder}/console {folder}/dev/console
        mount -t tmpfs tmpfs /etc/systemd
        mkdir -p /etc/systemd/system
        cp -r {folder}/units/. /etc/systemd/system
        mount --move {folder}/dev /dev
        for path in /var/lib /run /tmp /usr/local/sbin /lib/systemd/system/*.target.wants; do
            mount -t tmpfs -o mode=755 tmpfs $path
        done
        mount -t sysfs -o ro sysfs /sys
        ln -s {shlex.quote(str(hvsock))} /usr/local/sbin/hvsock
        unset HVSOCK_DIR HVSOCK_PARTITION HVSOCK_TRANSPORT
        export container=test
        exec {SYSTEMD} --system --unit=check.target --log-target=console --show-status=no
    """


CHECK: Final = f"""
    show() {{ echo "$1: $(systemctl is-active $1), started again $(systemctl show -P NRestarts $1) times"; }}
    pid() {{ systemctl show -P MainPID $1; }}
    until systemctl is-active -q check.target; do sleep 0.1; done
    show hvsock-fabric
    hvsock service register Echo
    hvsock partition create web --kind container --id {BOX}
    systemctl start {UNIT}
    show {UNIT}
    echo hello | hvsock connect --wait 60 web Echo
    echo "its network: $(nsenter -t $(pid {UNIT}) -n tail -n +3 /proc/net/dev | cut -d: -f1)"
    echo "its fabric: $(nsenter -t $(pid {UNIT}) -m ls /run/hvsock | wc -l)"
    before=$(pid hvsock-fabric)
    kill -9 $before
    until [ $(pid hvsock-fabric) != $before ] && systemctl is-active -q hvsock-fabric; do sleep 0.1; done
    show hvsock-fabric
    show {UNIT}
    echo "hello again" | hvsock connect --wait 60 web Echo
    systemctl start hvsock-agent
    show hvsock-agent
    hvsock heartbeat web --json
    systemctl stop {UNIT} hvsock-agent hvsock-fabric
    show hvsock-fabric
    echo "failed: $(systemctl --failed --no-legend --plain | wc -l)"
    echo {END}
"""


@contextlib.contextmanager
def systemd(folder: Path) -> Iterator[int]:
    """systemd in namespaces, and in a cgroup of its own; gives its process."""
    groups = [path / f"hvsock-test-{os.getpid()}" for path in cgroups()]
    for group in groups:
        group.mkdir()
    try:
        for group in groups:
            for name in ("cpuset.cpus", "cpuset.mems"):  # of the first version, in which they begin empty
                if group.joinpath(name).exists() and not group.joinpath(name).read_text().strip():
                    group.joinpath(name).write_text(group.parent.joinpath(name).read_text())
        join = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        script = f"{join} exec {shlex.join(['unshare', *NAMESPACES, 'sh', '-c', inside(folder)])}"
        with subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL) as process:
            try:
                yield first_of(process)
            finally:
                process.kill()
    finally:
        deadline = time.monotonic() + PATIENCE
        for group in groups:
            for path in (*sorted(group.rglob("*/"), reverse=True), group):
                while path.is_dir():
                    with contextlib.suppress(OSError):  # EBUSY: its processes are still ending
                        path.rmdir()
                    assert time.monotonic() < deadline
                    time.sleep(0.01)


def first_of(process: subprocess.Popen[bytes]) -> int:
    """The first process of the namespaces, once it is systemd."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None
        with contextlib.suppress(OSError, IndexError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
            child = int(children.split()[0])
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(SYSTEMD.encode()):
                return child
        time.sleep(0.05)
    raise AssertionError("systemd did not start")


def test_units(tmp_path: Path) -> None:
    units = tmp_path / "units"
    for unit, text in (
        ("hvsock-fabric", "[Service]\nExecStart=\nExecStart=/usr/bin/env hvsock up\n"),
        (
            "hvsock-agent",
            f"""
                [Unit]
                ConditionPathExists=
                [Service]
                Environment=HVSOCK_TRANSPORT=fabric HVSOCK_PARTITION=/run/hvsock/partitions/{BOX}
            """,
        ),
    ):
        units.joinpath(f"{unit}.service.d").mkdir(parents=True)
        units.joinpath(f"{unit}.service.d", "test.conf").write_text(text, encoding="utf-8")
    for path in UNITS:
        units.joinpath(path.name).write_bytes(path.read_bytes())
    wants = "[Unit]\nRequires=sysinit.target hvsock-fabric.service\nAfter=hvsock-fabric.service\n"
    units.joinpath("check.target").write_text(wants, encoding="utf-8")
    (tmp_path / "dev").mkdir()
    (tmp_path / "console").touch()
    with systemd(tmp_path) as first:
        enter = ["nsenter", "-t", str(first), "-m", "-p", "-u", "-i", "-n", "-C", "sh", "-c", CHECK]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HVSOCK_")}
        environ["PATH"] = f"/usr/local/sbin:{environ['PATH']}"
        done = subprocess.run(
            enter, env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/"
        )
    said = done.stdout.splitlines()
    print(done.stdout, done.stderr, (tmp_path / "console").read_text(errors="replace"))
    for line in (
        "hvsock-fabric: active, started again 0 times",
        f"{UNIT}: active, started again 0 times",
        "hello",
        "its network:     lo",
        "its fabric: 0",
        "hvsock-fabric: active, started again 1 times",
        "hello again",
        "hvsock-agent: active, started again 0 times",
        "hvsock-fabric: inactive, started again 0 times",
        "failed: 0",
        END,
    ):
        assert line in said, line
    assert '"primary_status": "OK"' in done.stdout
