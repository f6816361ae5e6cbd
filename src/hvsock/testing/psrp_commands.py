"""The commands of :mod:`.psrp_server`, and how statements run: generators of values, asynchronous.

============================== ================================================================================
Write-Output                   its arguments
Write-Error, -Warning          a record; Write-Error has -Category
Write-Verbose, -Debug          a record with -Verbose or -Debug, else nothing, as by PowerShell's own preferences
Write-Information, -Host       a record; Write-Host also has the host write a line
Write-Progress                 a record: -Activity, -Status, -PercentComplete, -Completed
Read-Host                      asks the host: a prompt, -AsSecureString
Get-Credential                 asks the host for a user and a password
Read-TestChoice                asks the host to choose among its arguments; gives the index
Get-Date                       the time
Start-Sleep                    -Seconds, -Milliseconds
Out-String                     the text of what comes in, with -Stream line by line
Out-Null, Measure-TestObject   nothing; how many values came in
Get-TestValue                  a value of each kind
New-TestText                   -Mebibytes of text, in strings of -Characters
Stop-TestServer                ends the process at once, as a crash would
exit                           ends the script, and tells the host its code
prompt                         the prompt of a shell
============================== ================================================================================
"""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import psrpcore.types as ps

from .psrp_language import Call, Items, Literal, Range, Statement, Table, Text, Variable, parse, with_variables

MAX_TEXT_MEBIBYTES: Final = 4096
"""Most that New-TestText makes."""


class RunningError(Exception):
    """A statement failed.

    Args:
        text: why.
        error_id: its FullyQualifiedErrorId.
        category: its category.
        terminating: whether the script ends by it.
    """

    def __init__(
        self,
        text: str,
        error_id: str = "RuntimeException",
        category: ps.ErrorCategory = ps.ErrorCategory.OperationStopped,
        *,
        terminating: bool = False,
    ) -> None:
        super().__init__(text)
        self.error_id, self.category, self.terminating = error_id, category, terminating


class ExitError(Exception):
    """A script says `exit`.

    Args:
        code: its code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Shell(Protocol):
    """What a running script has around it."""

    variables: dict[str, Any]

    def record(self, kind: str, *values: Any, **named: Any) -> None:
        """Write a record: the method `write_KIND` of psrpcore's pipeline."""

    async def flush(self) -> None:
        """Send what was written, and wait until there is room for more."""

    async def ask(self, method: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Make a host call, and wait for its answer; `method` is one of psrpcore's ServerHostRequestor."""


Arguments = tuple[tuple[str, Any], ...]
Values = AsyncIterator[Any]


async def nothing() -> Values:
    """No values."""
    for one in _NONE:
        yield one


_NONE: Final[tuple[Any, ...]] = ()


async def run_script(shell: Shell, text: str, values: Values, arguments: Arguments = ()) -> Values:
    """The output of a script.

    Args:
        shell: where it runs.
        text: it.
        values: its input.
        arguments: its `$args`; named ones become variables.

    Raises:
        ScriptSyntaxError, RunningError, ExitError: how it ends.
    """
    statements = parse(text)
    shell.variables["args"] = [value for name, value in arguments if not name]
    shell.variables.update({name.lower(): value for name, value in arguments if name})
    if any(_mentions_input(one) for one in statements):
        shell.variables["input"] = [one async for one in values]
    for statement in statements:
        try:
            if statement.throws:
                value = _value(shell, statement.stages[0]) if statement.stages else "ScriptHalted"
                raise RunningError(_text(value), _text(value), terminating=True)
            output = run_pipeline(shell, statement)
            if statement.target:
                found = [one async for one in output]
                shell.variables[statement.target] = found[0] if len(found) == 1 else found
            else:
                async for one in output:
                    yield one
        except RunningError as error:
            if error.terminating:
                raise
            write_error(shell, error)


def run_pipeline(shell: Shell, statement: Statement) -> Values:
    """The output of a statement."""
    first, *rest = statement.stages
    output = _started(shell, first)
    for stage in rest:
        output = run_command(shell, stage.name, _evaluated(shell, stage.arguments), output)
    return output


def run_command(shell: Shell, name: str, arguments: Arguments, values: Values) -> Values:
    """The output of a command.

    Raises:
        RunningError: there is none of that name.
    """
    found = COMMANDS.get(name.lower())
    if found is None:
        raise RunningError(
            f"The term '{name}' is not recognized as a name of a cmdlet.",
            "CommandNotFoundException",
            ps.ErrorCategory.ObjectNotFound,
        )
    return found(shell, _Given(name, arguments), values)


async def _started(shell: Shell, stage: Any) -> Values:
    if isinstance(stage, Call):
        async for one in run_command(shell, stage.name, _evaluated(shell, stage.arguments), nothing()):
            yield one
    elif isinstance(stage, Range):
        step = 1 if stage.last >= stage.first else -1
        for number in range(stage.first, stage.last + step, step):
            yield number
    else:
        value = _value(shell, stage)
        for one in value if isinstance(value, list) else [value]:
            yield one


def _evaluated(shell: Shell, arguments: Arguments) -> Arguments:
    return tuple((name, _value(shell, value)) for name, value in arguments)


def _value(shell: Shell, node: Any) -> Any:
    match node:
        case Literal(value):
            return value
        case Text(text):
            return with_variables(text, shell.variables)
        case Variable(name):
            return {"true": True, "false": False, "null": None}.get(name, shell.variables.get(name))
        case Range(first, last):
            return list(range(first, last + 1)) if last >= first else list(range(first, last - 1, -1))
        case Items(items):
            return [_value(shell, one) for one in items]
        case Table(entries, is_object):
            found = {name: _value(shell, value) for name, value in entries}
            return made_object(found) if is_object else found
    raise RunningError(f"{type(node).__name__} is no value")


def _mentions_input(statement: Statement) -> bool:
    def mentions(node: Any) -> bool:
        match node:
            case Variable(name):
                return name == "input"
            case Items(items):
                return any(map(mentions, items))
            case Call(_, arguments):
                return any(mentions(value) for _, value in arguments)
        return False

    return any(map(mentions, statement.stages))


def made_object(properties: dict[str, Any]) -> ps.PSCustomObject:
    """An object with properties."""
    made = ps.PSCustomObject()
    for name, value in properties.items():
        ps.add_note_property(made, name, value, force=True)
    return made


def write_error(shell: Shell, error: RunningError) -> None:
    """Write an error that ends nothing."""
    shell.record(
        "error",
        ps.NETException(Message=str(error), HResult=-2146233087),
        category_info=ps.ErrorCategoryInfo(Category=error.category, Reason="RuntimeException"),
        fully_qualified_error_id=error.error_id,
        script_stack_trace="at <ScriptBlock>, <No file>: line 1",
    )


def _text(value: Any) -> str:
    """A value as one line of text, the way of PowerShell as far as this goes."""
    match value:
        case None:
            return ""
        case ps.PSSecureString():
            return "System.Security.SecureString"
        case list():
            return " ".join(map(_text, value))
        case dict():
            return "; ".join(f"{name}={_text(one)}" for name, one in value.items())
        case ps.PSCustomObject():
            names = [one.name for one in value.PSObject.extended_properties]
            return "@{" + "; ".join(f"{name}={_text(value[name])}" for name in names) + "}"
        case _:
            return str(value)


class _Given:
    """What a command was given.

    Args:
        command: its name, for errors.
        arguments: names in any case, and "" for what goes by its place.
    """

    def __init__(self, command: str, arguments: Arguments) -> None:
        self._command = command
        self._named = {name.lower(): value for name, value in arguments if name}
        self.placed = [value for name, value in arguments if not name]

    def get(self, name: str, default: Any = None, *, place: int | None = None) -> Any:
        """An argument by its name, else by its place."""
        if name.lower() in self._named:
            return self._named[name.lower()]
        return self.placed[place] if place is not None and place < len(self.placed) else default

    def number(self, name: str, default: float = 0, *, place: int | None = None) -> float:
        """A number.

        Raises:
            RunningError: it is none.
        """
        value = self.get(name, default, place=place)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
            raise RunningError(f"{self._command}: -{name} is no number that can be meant", "ParameterBinding")
        return value

    def all(self, values: Values) -> Values:
        """What it was given by place or name, or else what comes in."""
        return self._all(values)

    async def _all(self, values: Values) -> Values:
        for one in self.placed:
            for part in one if isinstance(one, list) else [one]:
                yield part
        if not self.placed:
            async for one in values:
                yield one


Command = Callable[[Shell, _Given, Values], Values]


def _silent(act: Callable[[Shell, _Given, Values], Awaitable[None]]) -> Command:
    """A command that has no output."""

    async def command(shell: Shell, given: _Given, values: Values) -> Values:
        await act(shell, given, values)
        for one in _NONE:
            yield one

    return command


def _recording(kind: str, switch: str = "") -> Command:
    @_silent
    async def command(shell: Shell, given: _Given, values: Values) -> None:
        if switch and not given.get(switch):
            return
        shown = given.get("message", place=0)
        messages = [shown] if shown is not None else [one async for one in values]
        for one in messages:
            shell.record(kind, _text(one))

    return command


async def _write_output(shell: Shell, given: _Given, values: Values) -> Values:
    async for one in given.all(values):
        yield one


@_silent
async def _write_error(shell: Shell, given: _Given, values: Values) -> None:
    category = str(given.get("category", "NotSpecified"))
    if category not in ps.ErrorCategory.__members__:
        raise RunningError(f"Write-Error: there is no category {category}", "ParameterBinding")
    message = _text(given.get("message", place=0))
    write_error(
        shell, RunningError(message, _text(given.get("errorid", "WriteError")), ps.ErrorCategory[category])
    )


@_silent
async def _write_information(shell: Shell, given: _Given, values: Values) -> None:
    shell.record("information", given.get("messagedata", place=0), "Write-Information")


@_silent
async def _write_host(shell: Shell, given: _Given, values: Values) -> None:
    text = " ".join([_text(one) async for one in given.all(values)])
    shell.record("information", text, "Write-Host", tags=["PSHOST"])
    await shell.ask(_host("write_line"), text)


@_silent
async def _write_progress(shell: Shell, given: _Given, values: Values) -> None:
    shell.record(
        "progress",
        _text(given.get("activity", "", place=0)),
        int(given.number("id")),
        _text(given.get("status", "Processing")),
        percent_complete=int(given.number("percentcomplete")),
        record_type=ps.ProgressRecordType.Completed
        if given.get("completed")
        else ps.ProgressRecordType.Processing,
    )


async def _read_host(shell: Shell, given: _Given, values: Values) -> Values:
    prompt, secret = given.get("prompt", place=0), bool(given.get("assecurestring"))
    if prompt is None:
        yield await shell.ask(_host("read_line_as_secure_string" if secret else "read_line"))
        return
    kind = "SecureString" if secret else "String"
    label = _text(prompt)
    field = ps.FieldDescription(
        Name=label,
        Label=label,
        ParameterTypeName=kind,
        ParameterTypeFullName=f"System.{'Security.' if secret else ''}{kind}",
        ParameterAssemblyFullName="",
        HelpMessage="",
        IsMandatory=True,
        DefaultValue=None,
        Attributes=[],
    )
    answers = await shell.ask(_host("prompt"), "", "", [field])
    yield answers[label]


async def _get_credential(shell: Shell, given: _Given, values: Values) -> Values:
    message = _text(given.get("message", "Enter your credentials."))
    user = _text(given.get("username", "", place=0))
    found = await shell.ask(_host("prompt_for_credential"), "Credential request", message, user, "")
    password = found.Password.decrypt() if isinstance(found.Password, ps.PSSecureString) else ""
    yield made_object({"UserName": found.UserName, "Password": found.Password, "Length": len(password)})


async def _read_choice(shell: Shell, given: _Given, values: Values) -> Values:
    labels = [_text(one) async for one in given.all(values)]
    choices = [ps.ChoiceDescription(Label=one, HelpMessage=f"take {one}") for one in labels]
    caption, message = _text(given.get("caption", "")), _text(given.get("message", ""))
    yield await shell.ask(_host("prompt_for_choice"), caption, message, choices, int(given.number("default")))


async def _get_date(shell: Shell, given: _Given, values: Values) -> Values:
    yield dt.datetime.now(dt.UTC)


@_silent
async def _start_sleep(shell: Shell, given: _Given, values: Values) -> None:
    await shell.flush()
    await asyncio.sleep(given.number("milliseconds") / 1000 or given.number("seconds", place=0))


async def _out_string(shell: Shell, given: _Given, values: Values) -> Values:
    texts = []
    async for one in values:
        lines = _lines(one)
        if given.get("stream"):
            for line in lines:
                yield line
        else:
            texts += lines
    if not given.get("stream"):
        yield "".join(f"{line}\n" for line in texts)


def _lines(value: Any) -> list[str]:
    if isinstance(value, ps.PSCustomObject):
        names = [str(one.name) for one in value.PSObject.extended_properties]
        width = max(map(len, names), default=0)
        return ["", *(f"{name:{width}} : {_text(value[name])}" for name in names), ""]
    return _text(value).split("\n")


@_silent
async def _out_null(shell: Shell, given: _Given, values: Values) -> None:
    async for _ in values:
        pass


async def _measure(shell: Shell, given: _Given, values: Values) -> Values:
    count = 0
    async for _ in values:
        count += 1
    yield made_object({"Count": count})


async def _test_values(shell: Shell, given: _Given, values: Values) -> Values:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC)
    for one in (
        *(None, True, False, 0, -1, 2**31, ps.PSUInt64(2**64 - 1), 1.5, "", "Grüße, 你好 🚀 _x0041_\n\0"),
        *(ps.PSChar("x"), decimal.Decimal("1.10"), b"\x00\xff", uuid.UUID(int=7), moment),
        *(dt.timedelta(days=1, microseconds=5), ps.PSVersion("7.6.0.1"), ps.PSUri("http://x/"), ps.PSXml("<a/>")),
        *(
            ps.PSScriptBlock("1 + 1"),
            [1, [2, "x"], []],
            {"a": 1, "b": {"c": [None]}},
            ps.PSInvocationState.Running,
        ),
        made_object({"Name": "web01", "Size": 5, "Inner": made_object({"Deep": [1, 2]})}),
    ):
        yield one


async def _test_text(shell: Shell, given: _Given, values: Values) -> Values:
    total = int(given.number("mebibytes", 1, place=0) * 1024 * 1024)
    if total > MAX_TEXT_MEBIBYTES * 1024 * 1024:
        raise RunningError(f"New-TestText makes at most {MAX_TEXT_MEBIBYTES} MiB")
    size = max(1, int(given.number("characters", 10_000)))
    block = "0123456789abcdef" * (size // 16 + 1)
    while total > 0:
        yield block[: min(size, total)]
        total -= size


async def _stop_server(shell: Shell, given: _Given, values: Values) -> Values:
    await shell.flush()
    os._exit(1)
    yield None


async def _exit(shell: Shell, given: _Given, values: Values) -> Values:
    raise ExitError(int(given.number("code", place=0)))
    yield None


async def _prompt(shell: Shell, given: _Given, values: Values) -> Values:
    yield f"PS {os.getcwd()}> "


def _host(name: str) -> Callable[..., Any]:
    """A method of psrpcore's ServerHostRequestor by its name."""

    def call(requestor: Any, *values: Any) -> Any:
        return getattr(requestor, name)(*values)

    return call


COMMANDS: Final[dict[str, Command]] = {
    "write-output": _write_output,
    "echo": _write_output,
    "write-error": _write_error,
    "write-warning": _recording("warning"),
    "write-verbose": _recording("verbose", "verbose"),
    "write-debug": _recording("debug", "debug"),
    "write-information": _write_information,
    "write-host": _write_host,
    "write-progress": _write_progress,
    "read-host": _read_host,
    "get-credential": _get_credential,
    "read-testchoice": _read_choice,
    "get-date": _get_date,
    "start-sleep": _start_sleep,
    "out-string": _out_string,
    "out-null": _out_null,
    "measure-testobject": _measure,
    "get-testvalue": _test_values,
    "new-testtext": _test_text,
    "stop-testserver": _stop_server,
    "exit": _exit,
    "prompt": _prompt,
}
