"""The registry as a PowerShell script that registers the services on a Windows host.

Does what the script in the Microsoft documentation does ("Make your own integration services"), for
any number of services; running it again does no harm.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Final

from hvsock.registry.entries import ServiceEntry

from . import ELEMENT_NAME, GUEST_COMMUNICATION_SERVICES

_SINGLE_QUOTES: Final = "'\u2018\u2019\u201a\u201b"
"""What ends a string in single quotes: PowerShell takes the typographic ones too (about_Quoting_Rules)."""
_DOUBLED: Final = str.maketrans({quote: quote * 2 for quote in _SINGLE_QUOTES})

_SCRIPT: Final = """\
#Requires -RunAsAdministrator
# Registers services for Hyper-V sockets on this host. Running it again does no harm.
$ErrorActionPreference = 'Stop'
$key = 'HKLM:\\{key}'
$services = @(
{services})
foreach ($service in $services) {{
    $path = Join-Path $key $service.Id
    if (-not (Test-Path -LiteralPath $path)) {{
        New-Item -Path $key -Name $service.Id | Out-Null
    }}
    Set-ItemProperty -LiteralPath $path -Name '{element_name}' -Value $service.Name -Type String
}}
"""


def dump_powershell(services: Iterable[ServiceEntry], *, inbox: bool = False) -> bytes:
    """The script that registers `services`: UTF-8 with a byte order mark, lines ended by CR LF.

    Without the mark Windows PowerShell 5.1 reads a script in the code page of its host.

    Args:
        services: what to register, in this order.
        inbox: whether in-box services are among it; of those, every Windows host has the VM Session Services.
    """
    lines = [
        f"    @{{ Id = '{entry.id}'; Name = {single_quoted(entry.name)} }}\n"
        for entry in services
        if inbox or not entry.inbox
    ]
    script = _SCRIPT.format(key=GUEST_COMMUNICATION_SERVICES, element_name=ELEMENT_NAME, services="".join(lines))
    return codecs.BOM_UTF8 + script.replace("\n", "\r\n").encode()


def single_quoted(text: str) -> str:
    """`text` as a string in single quotes, in which PowerShell expands nothing."""
    return f"'{text.translate(_DOUBLED)}'"
