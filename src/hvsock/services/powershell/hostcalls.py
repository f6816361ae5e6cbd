"""Calls of a script to its host: psrpcore's events on one side, :class:`.hosts.Host` on the other."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import psrpcore.types as ps
from psrpcore import PipelineHostCallEvent, RunspacePoolHostCallEvent

from hvsock._version import __version__
from hvsock.errors import NotReadyError, ProtocolError

from .hosts import Choice, Field, Host
from .records import Secret
from .values import progress, to_powershell, to_python

NO_ANSWER: Final = -100
"""The number of a call that wants no answer."""
MAX_CHOICES: Final = 1000
"""Most choices and fields that a script may ask about at once."""

Call = PipelineHostCallEvent | RunspacePoolHostCallEvent
_Method = ps.HostMethodIdentifier


def host_info(host: Host | None) -> ps.HostInfo:
    """What the server is told about the host when a pool is opened."""
    if host is None:
        return ps.HostInfo(IsHostNull=True, IsHostUINull=True, IsHostRawUINull=True, UseRunspaceHost=True)
    size, corner = ps.Size(*host.size()), ps.Coordinates(0, 0)
    data = ps.HostDefaultData(
        ForegroundColor=ps.ConsoleColor.Gray,
        BackgroundColor=ps.ConsoleColor.Black,
        CursorPosition=corner,
        WindowPosition=corner,
        CursorSize=25,
        BufferSize=size,
        WindowSize=size,
        MaxWindowSize=size,
        MaxPhysicalWindowSize=size,
        WindowTitle="hvsock",
    )
    return ps.HostInfo(
        IsHostNull=False, IsHostUINull=False, IsHostRawUINull=False, UseRunspaceHost=False, HostDefaultData=data
    )


def pipeline_host_info() -> ps.HostInfo:
    """What the server is told about the host of a pipeline: that of its pool."""
    return ps.HostInfo(IsHostNull=True, IsHostUINull=True, IsHostRawUINull=True, UseRunspaceHost=True)


def wants_secret(call: Call) -> bool:
    """Whether the answer may hold a secret, for which both sides need a key."""
    method = call.method_identifier
    if method is _Method.Prompt:
        return any(one.is_secret for one in _fields(call))
    return method in _SECRET


async def answered(host: Host, call: Call) -> Any:
    """Have the host do what a call wants; gives the answer for :func:`psrpcore.ClientRunspacePool.host_response`.

    Raises:
        NotReadyError: the host has nothing of the kind.
        ProtocolError: it is no such call.
        Exception: what the host raises.
    """
    answer = _ANSWERS.get(call.method_identifier)
    if answer is None:
        if call.method_identifier.is_void():
            return None  # colours, cursors, titles: nothing that a stream of text has
        raise NotReadyError(f"this host has no {call.method_identifier.name}")
    return await answer(host, _Arguments(call))


class _Arguments:
    """The arguments of a call, checked as they are asked for.

    Args:
        call: it.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        try:
            self._values = list(call.method_parameters)
        except Exception as error:  # of whatever kind: psrpcore looks into objects as it hopes they are
            raise ProtocolError(f"a host call is not as it should be: {error!r}") from error

    def text(self, index: int) -> str:
        value = self.value(index)
        return "" if value is None else str(to_python(value))

    def number(self, index: int) -> int:
        value = self.value(index)
        if not isinstance(value, int):
            raise ProtocolError(
                f"argument {index} of a host call, {self.call.method_identifier.name}, is no number"
            )
        return int(value)

    def value(self, index: int) -> Any:
        if index >= len(self._values):
            raise ProtocolError(f"the host call {self.call.method_identifier.name} lacks arguments")
        return self._values[index]

    def items(self, index: int) -> list[Any]:
        value = self.value(index)
        if not isinstance(value, list) or len(value) > MAX_CHOICES:
            raise ProtocolError(f"the host call {self.call.method_identifier.name} has no list of its kind")
        return value


def _fields(call: Call) -> list[Field]:
    return [
        Field(
            name=str(one.Name or ""),
            label=str(one.Label or "").replace("&", ""),
            help=str(one.HelpMessage or ""),
            type=str(one.ParameterTypeName or "String").rpartition(".")[2],
            default=to_python(one.DefaultValue),
        )
        for one in _Arguments(call).items(2)
    ]


def _choices(arguments: _Arguments) -> list[Choice]:
    found = []
    for one in arguments.items(2):
        before, _, after = str(one.Label or "").partition("&")
        found.append(Choice(before + after, after[:1], str(one.HelpMessage or "")))
    if not found:
        raise ProtocolError("a host call offers no choice")
    return found


async def _write(host: Host, arguments: _Arguments) -> None:
    await host.write(arguments.text(0))


async def _write_line(host: Host, arguments: _Arguments) -> None:
    await host.write(f"{arguments.text(0)}\n")


async def _write_coloured(host: Host, arguments: _Arguments) -> None:
    await host.write(arguments.text(2))


async def _write_line_coloured(host: Host, arguments: _Arguments) -> None:
    await host.write(f"{arguments.text(2)}\n")


async def _write_empty_line(host: Host, _: _Arguments) -> None:
    await host.write("\n")


def _write_stream(prefix: str) -> Callable[[Host, _Arguments], Awaitable[None]]:
    async def write(host: Host, arguments: _Arguments) -> None:
        await host.write_error(f"{prefix}{arguments.text(0)}")

    return write


async def _progress(host: Host, arguments: _Arguments) -> None:
    await host.progress(progress(arguments.value(1)))


async def _exit(host: Host, arguments: _Arguments) -> None:
    await host.exit(arguments.number(0))


async def _read_line(host: Host, _: _Arguments) -> str:
    return await host.read_line()


async def _read_secret(host: Host, _: _Arguments) -> Any:
    return to_powershell(Secret(await host.read_secret()))


async def _prompt(host: Host, arguments: _Arguments) -> dict[str, Any]:
    answers = await host.prompt(arguments.text(0), arguments.text(1), _fields(arguments.call))
    return {name: to_powershell(one) for name, one in answers.items()}


async def _credential(host: Host, arguments: _Arguments) -> ps.PSCredential:
    user, secret = await host.credential(*(arguments.text(index) for index in range(4)))
    return ps.PSCredential(user, ps.PSSecureString(str(secret)))


async def _choose(host: Host, arguments: _Arguments) -> int:
    choices, default = _choices(arguments), arguments.number(3)
    if default >= len(choices):
        raise ProtocolError("a host call offers a choice that it has not")
    return await host.choose(arguments.text(0), arguments.text(1), choices, default)


async def _size(host: Host, _: _Arguments) -> Any:
    return ps.Size.ToPSObjectForRemoting(ps.Size(*host.size()), for_host=True)


async def _corner(_: Host, __: _Arguments) -> Any:
    return ps.Coordinates.ToPSObjectForRemoting(ps.Coordinates(0, 0), for_host=True)


def _always(value: Any) -> Callable[[Host, _Arguments], Awaitable[Any]]:
    async def give(_: Host, __: _Arguments) -> Any:
        return value

    return give


_SECRET: Final = frozenset(
    (_Method.ReadLineAsSecureString, _Method.PromptForCredential1, _Method.PromptForCredential2)
)
_ANSWERS: Final[dict[Any, Callable[[Host, _Arguments], Awaitable[Any]]]] = {
    _Method.GetName: _always("hvsock"),
    _Method.GetVersion: _always(ps.PSVersion(__version__)),
    _Method.GetInstanceId: _always(uuid.uuid4()),
    _Method.GetCurrentCulture: _always("en-US"),
    _Method.GetCurrentUICulture: _always("en-US"),
    _Method.GetIsRunspacePushed: _always(False),
    _Method.SetShouldExit: _exit,
    _Method.ReadLine: _read_line,
    _Method.ReadLineAsSecureString: _read_secret,
    _Method.Write1: _write,
    _Method.Write2: _write_coloured,
    _Method.WriteLine1: _write_empty_line,
    _Method.WriteLine2: _write_line,
    _Method.WriteLine3: _write_line_coloured,
    _Method.WriteErrorLine: _write_stream(""),
    _Method.WriteDebugLine: _write_stream("DEBUG: "),
    _Method.WriteVerboseLine: _write_stream("VERBOSE: "),
    _Method.WriteWarningLine: _write_stream("WARNING: "),
    _Method.WriteProgress: _progress,
    _Method.Prompt: _prompt,
    _Method.PromptForCredential1: _credential,
    _Method.PromptForCredential2: _credential,
    _Method.PromptForChoice: _choose,
    _Method.GetForegroundColor: _always(int(ps.ConsoleColor.Gray)),
    _Method.GetBackgroundColor: _always(int(ps.ConsoleColor.Black)),
    _Method.GetCursorPosition: _corner,
    _Method.GetWindowPosition: _corner,
    _Method.GetCursorSize: _always(25),
    _Method.GetBufferSize: _size,
    _Method.GetWindowSize: _size,
    _Method.GetMaxWindowSize: _size,
    _Method.GetMaxPhysicalWindowSize: _size,
    _Method.GetWindowTitle: _always("hvsock"),
    _Method.GetKeyAvailable: _always(False),
}


def failure(error: BaseException) -> ps.ErrorRecord:
    """What a script is told where its host failed it."""
    exception = ps.NETException(Message=str(error) or type(error).__name__, HResult=-2146233087)
    exception.PSObject.type_names = [
        "System.Management.Automation.Host.HostException",
        "System.Management.Automation.RuntimeException",
        *exception.PSObject.type_names,
    ]
    category = ps.ErrorCategoryInfo(Category=ps.ErrorCategory.ResourceUnavailable, Reason="HostException")
    return ps.ErrorRecord(Exception=exception, CategoryInfo=category, FullyQualifiedErrorId="HostFailed")
