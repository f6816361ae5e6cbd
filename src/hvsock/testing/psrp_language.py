"""The little language of :mod:`.psrp_server`: what looks like PowerShell there, read into plain values.

::

    program    = statement { (";" | newline) statement }
    statement  = "throw" [value] | "$" name "=" pipeline | pipeline
    pipeline   = (values | command) { "|" command }
    command    = name { "-" name [value] | value }
    values     = value { "," value }
    value      = number | number ".." number | string | "$" name | "@{" { name "=" value } "}"
               | "[pscustomobject]" value | "@(" [values] ")"

Strings in single quotes are as they are; in double quotes, `$name` stands for a variable. It is no PowerShell, and
has no more than tests of the protocol need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

MAX_SCRIPT_CHARACTERS: Final = 1024 * 1024
"""Longest script."""
MAX_DEPTH: Final = 50
"""Levels of values in values."""

_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r]+|\#[^\n]*|`\r?\n)"
    r"|(?P<end>[;\n])"
    r"|(?P<string>'(?:[^']|'')*'|\"(?:[^\"`]|`.|\"\")*\")"
    r"|(?P<range>-?\d+\.\.-?\d+)"
    r"|(?P<number>-?\d+(?:\.\d+)?(?![\w.]))"
    r"|(?P<open>@\{|@\()"
    r"|(?P<cast>\[pscustomobject\])"
    r"|(?P<variable>\$[A-Za-z_]\w*)"
    r"|(?P<parameter>-[A-Za-z]\w*:?)"
    r"|(?P<mark>[|,=})])"
    r"|(?P<word>[^\s;|,'\"(){}=@$\[\]#][^\s;|,'\"(){}=]*)",
    re.IGNORECASE,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "e": "\x1b"}
_VARIABLE: Final = re.compile(r"\$([A-Za-z_]\w*)")


class ScriptSyntaxError(Exception):
    """A script is not in the language."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a script: its kind, as the names of groups in the expression, and its text."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as it is."""

    value: Any


@dataclass(frozen=True, slots=True)
class Text:
    """A text in which variables stand for their values."""

    text: str


@dataclass(frozen=True, slots=True)
class Variable:
    """The value of a variable."""

    name: str


@dataclass(frozen=True, slots=True)
class Range:
    """The integers from one to another, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Items:
    """Several values."""

    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Names with values; an object where it is cast to one."""

    entries: tuple[tuple[str, Any], ...]
    is_object: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A command with its arguments: names in lower case and "" for those by place."""

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        stages: values or a command, and the commands that it is piped to.
        target: the variable that its output is put into; "" where it is the output.
        throws: whether it is an error that ends the script, with the value of its only stage.
    """

    stages: tuple[Any, ...] = field(default=())
    target: str = ""
    throws: bool = False


def parse(text: str) -> list[Statement]:
    """The statements of a script.

    Raises:
        ScriptSyntaxError: it is not in the language.
    """
    if len(text) > MAX_SCRIPT_CHARACTERS:
        raise ScriptSyntaxError(f"a script has more than {MAX_SCRIPT_CHARACTERS} characters")
    return _Parser(list(_tokens(text))).program()


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ScriptSyntaxError(f"unexpected token {text[at : at + 10]!r} at character {at}")
        if found.lastgroup is not None and found.lastgroup != "space":
            yield Token(found.lastgroup, found[0])
        at = found.end()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def program(self) -> list[Statement]:
        statements = []
        while self._at < len(self._tokens):
            if not self._accept("end"):
                statements.append(self._statement())
                if self._at < len(self._tokens) and not self._accept("end"):
                    raise self._unexpected()
        return statements

    def _statement(self) -> Statement:
        token = self._peek()
        if token.kind == "word" and token.text.lower() == "throw":
            self._at += 1
            stages = () if self._peek().kind in ("end", "") else (self._value(),)
            return Statement(stages, throws=True)
        if token.kind == "variable" and self._peek(1).text == "=":
            self._at += 2
            return Statement(self._pipeline(), target=token.text[1:].lower())
        return Statement(self._pipeline())

    def _pipeline(self) -> tuple[Any, ...]:
        stages = [self._call() if self._peek().kind == "word" else self._values()]
        while self._accept("mark", "|"):
            if self._peek().kind != "word":
                raise self._unexpected()
            stages.append(self._call())
        return tuple(stages)

    def _call(self) -> Call:
        name = self._take().text
        arguments: list[tuple[str, Any]] = []
        while (token := self._peek()).kind not in ("", "end") and token.text != "|":
            if token.kind == "parameter":
                self._at += 1
                value: Any = Literal(True)
                if self._peek().kind not in ("", "end", "parameter") and self._peek().text != "|":
                    value = self._argument()
                arguments.append((token.text[1:].rstrip(":").lower(), value))
            else:
                arguments.append(("", self._argument()))
        return Call(name, tuple(arguments))

    def _argument(self) -> Any:
        if self._peek().kind == "word":
            return Literal(self._take().text)
        return self._values()

    def _values(self) -> Any:
        first = self._value()
        if self._peek().text != ",":
            return first
        items = [first]
        while self._accept("mark", ","):
            items.append(self._value())
        return Items(tuple(items))

    def _value(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ScriptSyntaxError(f"values are more than {MAX_DEPTH} levels deep")
        made = self._simple(self._take())
        self._depth -= 1
        return made

    def _simple(self, token: Token) -> Any:
        match token.kind:
            case "number":
                return Literal(float(token.text) if "." in token.text else int(token.text))
            case "range":
                first, last = token.text.split("..")
                return Range(int(first), int(last))
            case "string":
                return _string(token.text)
            case "variable":
                return Variable(token.text[1:].lower())
            case "cast":
                made = self._value()
                if not isinstance(made, Table):
                    raise self._unexpected()
                return Table(made.entries, is_object=True)
            case "open":
                return self._table() if token.text == "@{" else self._list()
        self._at -= 1
        raise self._unexpected()

    def _table(self) -> Table:
        entries = []
        while not self._accept("mark", "}"):
            if self._accept("end"):
                continue
            name = self._take()
            if name.kind not in ("word", "string"):
                raise self._unexpected()
            if not self._accept("mark", "="):
                raise self._unexpected()
            entries.append((name.text.strip("'\""), self._values()))
        return Table(tuple(entries))

    def _list(self) -> Items:
        if self._accept("mark", ")"):
            return Items(())
        made = self._values()
        if not self._accept("mark", ")"):
            raise self._unexpected()
        return made if isinstance(made, Items) else Items((made,))

    def _peek(self, ahead: int = 0) -> Token:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else Token("", "")

    def _take(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _accept(self, kind: str, text: str | None = None) -> bool:
        token = self._peek()
        if token.kind != kind or (text is not None and token.text != text):
            return False
        self._at += 1
        return True

    def _unexpected(self) -> ScriptSyntaxError:
        text = self._peek().text
        return ScriptSyntaxError(f"unexpected token {text!r}" if text else "the script ends too early")


def _string(text: str) -> Any:
    inside = text[1:-1]
    if text[0] == "'":
        return Literal(inside.replace("''", "'"))
    inside = re.sub(r"`(.)", lambda found: _ESCAPES.get(found[1], found[1]), inside.replace('""', '"'))
    return Text(inside) if "$" in inside else Literal(inside)


def with_variables(text: str, variables: dict[str, Any]) -> str:
    """`text` with the values of its variables."""
    return _VARIABLE.sub(lambda found: str(variables.get(found[1].lower(), "")), text)
