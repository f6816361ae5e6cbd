"""A host of kernel vsock, which is a guest itself: it runs vhost_vsock and a QEMU of its own; prints JSON.

Runs in a guest as root. /mnt has a QEMU, and the kernel and the initramfs of the guest inside, which runs
service.py. The VMs that this process knows are those of QEMU's command lines; client.py, beside this script, is
run once with them, and once with a table.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final

import hvsock

assert sys.platform == "linux"

NAME: Final = "web01"
VM_ID: Final = hvsock.VmId("bbe094b0-9bbd-45e0-b56a-823244e51922")
CID: Final = 7
PORT: Final = "5005"
"""Where service.py listens, and CALL makes it connect back to its host."""
CALL: Final = "6007"
UP_SECONDS: Final = 1500.0
"""How long the guest inside may take; it takes three quarters of a minute where little else is done."""
SECONDS: Final = 60.0
HERE: Final = pathlib.Path(__file__).parent
CONFIG: Final = f"""
[profiles.qemu]
transport = "vsock"
guests = "qemu"
[profiles.table]
transport = "vsock"
guests = "table"
[profiles.table.vms.{NAME}]
id = "{VM_ID}"
cid = {CID}
[profiles.table.vms.another]
cid = {CID + 1}
"""


def qemu(*more: str) -> Sequence[str]:
    """The command of the guest inside."""
    hardware = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm", "-cpu", "max", "-m", "512M"]
    device = ["-device", f"vhost-vsock-pci,guest-cid={CID}", "-serial", "file:/console.log"]
    boot = ["-kernel", "/vm/kernel", "-initrd", "/vm/initrd", "-append", " ".join(more), "-L", "/firmware"]
    return ["chroot", "/mnt", "/qemu-system-x86_64", "-name", NAME, "-uuid", str(VM_ID), *hardware, *device, *boot]


def with_client(profile: str, name: str) -> None:
    """Require that all that the client checks goes well."""
    environ = {**os.environ, "HVSOCK_PROFILE": profile}
    command = [sys.executable, str(HERE / "client.py"), name]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)["checks"]
    assert found
    assert set(found.values()) == {"passed"}, found


def check_the_client_by_name() -> None:
    with_client("qemu", NAME)


def check_the_guest_by_its_vm_id() -> None:
    with hvsock.create_connection((str(VM_ID), PORT), SECONDS) as sock:
        assert sock.getpeername() == (VM_ID, hvsock.ServiceId.from_port(int(PORT)))
        exchange(sock)


def check_the_client_by_a_table() -> None:
    with_client("table", NAME)


def check_the_guest_by_its_cid() -> None:
    with hvsock.create_connection(f"vsock://{CID}:{PORT}", SECONDS) as sock:
        assert sock.getpeername() == (hvsock.VmId.from_cid(CID), hvsock.ServiceId.from_port(int(PORT)))
        exchange(sock)


def check_a_listener_for_this_guest_alone() -> None:
    for bound in (str(VM_ID), "children"):
        with hvsock.create_server((bound, CALL)) as server:
            server.settimeout(SECONDS)
            with hvsock.create_connection((NAME, PORT), SECONDS) as sock:
                call(sock)
                called, peer = server.accept()
                with called:
                    assert peer.vm_id == called.getpeername().vm_id == VM_ID
                    assert called.makefile("rb").read() == f"call {CALL}".encode()


def check_a_listener_for_another_guest() -> None:
    with hvsock.create_server((str(hvsock.VmId.from_cid(CID + 1)), CALL)) as server:
        server.settimeout(SECONDS)
        with hvsock.create_connection((NAME, PORT), SECONDS) as sock:
            call(sock)
            assert sock.makefile("rb").read(1)  # it was let in by the kernel, and has sent
            server.settimeout(0.5)
            try:
                server.accept()[0].close()
            except TimeoutError:
                return
    raise AssertionError("a guest was let in that the listener is not for")


def exchange(sock: hvsock.socket) -> None:
    """Have the guest's service send something back."""
    block = (5).to_bytes(4, "little") + b"hello"
    sock.sendall(block)
    assert sock.makefile("rb").read(len(block)) == block


def call(sock: hvsock.socket) -> None:
    """Have the guest's service connect to its host."""
    block = f"call {CALL}".encode()
    sock.sendall(len(block).to_bytes(4, "little") + block)


def check_where_no_guest_is() -> None:
    requires_no_host(f"vsock://{CID + 1}:{PORT}")


def requires_no_host(address: str) -> None:
    """Require that a connect says that there is no such VM."""
    try:
        hvsock.create_connection(address, SECONDS).close()
    except OSError as error:
        if error.errno != errno.EHOSTUNREACH:
            raise
        return
    raise AssertionError(f"something answers at {address}")


CHECKS: Final = {name: value for name, value in globals().items() if name.startswith("check_")}
THE_END: Final = "check_that_the_guest_ends"


def the_end(process: subprocess.Popen[bytes]) -> None:
    """Kill the guest: its connections end, and its VmId leads nowhere."""
    with hvsock.create_connection((NAME, PORT), SECONDS) as sock:
        process.kill()
        process.wait()
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    requires_no_host(f"hvsocket://{VM_ID}/{PORT}")
    deadline = time.monotonic() + SECONDS  # what is known of guests is a second old at most
    while time.monotonic() < deadline:
        try:
            hvsock.resolve((NAME, PORT))
        except hvsock.NotFoundError:
            return
        time.sleep(0.1)
    raise AssertionError("the guest is gone, and its name is not")


def main() -> None:
    """Start the guest inside, and run all checks."""
    config = HERE / "config.toml"
    config.write_text(CONFIG, encoding="utf-8")
    del os.environ["HVSOCK_TRANSPORT"]
    os.environ.update(HVSOCK_CONFIG=str(config), HVSOCK_PROFILE="qemu")
    results = {}

    def run(name: str, check: object, *args: object) -> None:
        began = time.monotonic()
        try:
            check(*args)  # type: ignore[operator]
            results[name] = "passed"
        except Exception as error:
            traceback.print_exc()
            results[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)

    started = time.monotonic()
    with subprocess.Popen(qemu(*sys.argv[1:])) as process:
        try:
            hvsock.create_connection((NAME, PORT), UP_SECONDS, retry=True).close()
            print(f"the guest inside is up after {time.monotonic() - started:.0f} s", flush=True)
            for name, check in CHECKS.items():
                run(name, check)
            run(THE_END, the_end, process)
        finally:
            process.kill()
    print(f"\n{json.dumps({'checks': results})}", flush=True)


if __name__ == "__main__":
    main()
