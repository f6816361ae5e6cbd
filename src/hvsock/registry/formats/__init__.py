"""The registry in the forms in which it travels: pure functions between entries and bytes.

- :mod:`.regfile`: a ``.reg`` file, as regedit writes and takes it; carries id and friendly name, both ways;
- :mod:`.powershell`: a script that registers the services on Windows; one way;
- :mod:`.jsonfile`: everything that the registry knows, both ways.
"""

from __future__ import annotations

from typing import Final

GUEST_COMMUNICATION_SERVICES: Final = (
    r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
)
"""The key under HKEY_LOCAL_MACHINE with one key for each service, named by the bare GUID (Microsoft documentation,
"Make your own integration services")."""
ELEMENT_NAME: Final = "ElementName"
"""The value with the friendly name, the only one that is documented (ibid.)."""
