"""The host's keys for one VM: its own key pair, and the guest's host key that it holds the guest to."""

from __future__ import annotations

import contextlib
import os

from hvsock.addresses import VmId
from hvsock.errors import ProtocolError

from .handover import GuestIdentity
from .keyfiles import key_pair, private_folder, read_text, write_private


class HostKeys:
    """What the host keeps of one VM, in a folder of its own, which is made where it is missing.

    Args:
        folder: the folder of all VMs' keys.
        vm_id: the VM.
        name: what its user calls it, for errors.
    """

    def __init__(self, folder: str, vm_id: VmId, name: str) -> None:
        self._name = name
        self._alias = str(vm_id)
        self._folder = private_folder(os.path.join(private_folder(folder), self._alias))
        self.private_path = os.path.join(self._folder, "id_ed25519")
        """The private key, for `ssh -i`."""
        self.known_hosts_path = os.path.join(self._folder, "known_hosts")
        """The guest's host key for OpenSSH, under the VmId as its alias."""
        self._pin_path = os.path.join(self._folder, "pinned_key")

    @property
    def alias(self) -> str:
        """The name of the guest in :attr:`known_hosts_path`."""
        return self._alias

    def key_pair(self) -> tuple[str, str]:
        """The private and the public key, made on first use.

        Raises:
            StateError: the file is damaged.
        """
        return key_pair(self.private_path)

    def accept(self, guest: GuestIdentity) -> None:
        """Hold the guest to its host key: pin the first that it keeps, and refuse any other from then on.

        Raises:
            ProtocolError: it is another than the pinned one.
        """
        pinned = read_text(self._pin_path)
        if pinned is None and guest.kept:
            write_private(self._pin_path, f"{guest.key}\n".encode(), replace=False)
            pinned = read_text(self._pin_path)
        if pinned is not None and pinned.strip() != guest.key:
            raise ProtocolError(
                f"{self._name} has another host key than before, so its agent may be another program; if it was "
                f"made anew: hvsock direct forget {self._name}"
            )
        line = f"{self._alias} {guest.key}\n"
        if read_text(self.known_hosts_path) != line:
            write_private(self.known_hosts_path, line.encode())

    def forget(self) -> bool:
        """Forget the guest's host key; the next one is pinned. Says whether there was one."""
        was_there = False
        for path in (self._pin_path, self.known_hosts_path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                was_there = True
        return was_there
