"""One question to PowerShell, answered in JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

from hvsock.errors import HvsockError, NotReadyError, RefusedError, RemoteError
from hvsock.registry.entries import quoted

from .programs import ANSWER_SECONDS, in_system, output_of

PROGRAM: Final = (
    in_system("WindowsPowerShell", "v1.0", "powershell.exe"),
    *("-NoLogo", "-NoProfile", "-NonInteractive"),
)
"""Windows PowerShell 5.1, which every Windows has."""

# Progress would go to the standard error as XML, and text in the code page of the console. ASCII survives both.
_FRAME: Final = """
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false
try {{
    $found = @(& {{ {script} }})
    ConvertTo-Json -Compress -Depth 8 -InputObject @{{ found = $found }}
}} catch {{
    ConvertTo-Json -Compress -InputObject @{{
        error = $_.Exception.Message
        category = $_.CategoryInfo.Category.ToString()
        id = $_.FullyQualifiedErrorId
    }}
}}
"""


def ask(script: str, program: Sequence[str] = PROGRAM, seconds: float = ANSWER_SECONDS) -> list[Any]:
    """The objects that a script writes, as JSON values.

    Args:
        script: what to run. No input of a user is ever part of it.
        program: the shell and its first arguments.
        seconds: how long it may take.

    Raises:
        NotReadyError: there is no PowerShell or no such command, or it took too long.
        RefusedError: this user may not ask that.
        RemoteError: the script failed in another way, or its answer is none.
    """
    text = _FRAME.format(script=script)
    command = base64.b64encode(text.encode("utf-16-le")).decode("ascii")
    answer = output_of([*program, "-EncodedCommand", command], seconds)
    try:
        value = json.loads(answer.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        shown = quoted(answer.decode("utf-8", "replace").strip())
        raise RemoteError(f"PowerShell did not answer in JSON, but {shown}") from None
    if isinstance(value, dict) and isinstance(value.get("found"), list):
        found: list[Any] = value["found"]
        return found
    if isinstance(value, dict) and isinstance(value.get("error"), str):
        raise _failure(value)
    raise RemoteError(f"PowerShell answered something else: {quoted(json.dumps(value))}")


def _failure(value: dict[str, Any]) -> HvsockError:
    text = " ".join(value["error"].split())
    if value.get("category") == "PermissionDenied":
        return RefusedError(
            f"PowerShell says: {text} (join the group Hyper-V Administrators, or run this in an elevated prompt)"
        )
    if str(value.get("id")).partition(",")[0] == "CommandNotFoundException":
        return NotReadyError(
            f"PowerShell says: {text} (install Hyper-V's module: "
            "Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V-Management-PowerShell)"
        )
    return RemoteError(f"PowerShell says: {text}")


def text(value: object) -> str:
    """A value of JSON that is text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
