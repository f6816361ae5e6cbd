"""What a pipeline gives, as text and as JSON, and the language of the server that the tests use."""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from hvsock.errors import HvsockError
from hvsock.services.powershell import records
from hvsock.services.powershell.records import (
    ErrorDetail,
    Information,
    Progress,
    Record,
    RemoteObject,
    Result,
    ScriptError,
    Secret,
    Stream,
    one_line,
    text_of,
    to_json,
)
from hvsock.testing.psrp_language import (
    MAX_DEPTH,
    MAX_SCRIPT_CHARACTERS,
    Call,
    Items,
    Literal,
    Range,
    ScriptSyntaxError,
    Statement,
    Table,
    Text,
    Variable,
    parse,
    with_variables,
)

MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "text", "in_json"),
    [
        (None, "", None),
        (True, "True", True),
        (5, "5", 5),
        (1.5, "1.5", 1.5),
        (float("inf"), "inf", "inf"),
        (float("-inf"), "-inf", "-inf"),
        (float("nan"), "nan", "nan"),
        ("a\nb", "a\nb", "a\nb"),
        (Secret("hush"), "System.Security.SecureString", None),
        (Decimal("1.10"), "1.10", "1.10"),
        (UUID(int=7), str(UUID(int=7)), str(UUID(int=7))),
        (b"\x00\xff", "0 255", "AP8="),
        (MOMENT, "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00"),
        (dt.timedelta(seconds=90), "0:01:30", 90.0),
        ([1, [None, "x"]], "{1, {, x}}", [1, [None, "x"]]),
        ({"a": 1, 2: [3]}, "a : 1\n2 : {3}", {"a": 1, "2": [3]}),
        (RemoteObject({}, ["X"], "itself"), "itself", {}),
        (RemoteObject({"Name": "x", "Of": RemoteObject({"A": 1})}), "Name : x\nOf   : @{A=1}", None),
        (RemoteObject({"In": RemoteObject({"A": 1}, text="told")}), "In : told", {"In": {"A": 1}}),
        (ErrorDetail("bad", activity="Get-X"), "Get-X: bad", None),
        (Progress("Copying", "half", 50), "Copying: half 50 %", None),
        (Progress("Copying", "half"), "Copying: half", None),
        (Information({"a": Secret("hush")}), "a : System.Security.SecureString", None),
        (range(2), "range(0, 2)", "range(0, 2)"),
    ],
)
def test_values_as_text_and_json(value: Any, text: str, in_json: Any) -> None:
    assert text_of(value) == Record(Stream.OUTPUT, value).text == text
    made = to_json(value)
    assert json.loads(json.dumps(made)) == made
    if in_json is not None:
        assert made == in_json


def test_secrets_are_nowhere_in_text_or_json() -> None:
    value = {"a": [Secret("hush")], "b": RemoteObject({"c": Secret("hush")})}
    assert "hush" not in text_of(value) + json.dumps(to_json(value)) + repr(value)


def test_names_of_properties_in_any_case() -> None:
    made = RemoteObject({"Name": 1, "name": 2, "Größe": 3})
    assert (made["Name"], made["name"], made["NAME"], made["GRÖSSE"]) == (1, 2, 2, 3)
    assert list(made) == ["Name", "name", "Größe"]
    assert len(made) == 3
    assert 5 not in made  # type: ignore[comparison-overlap]
    with pytest.raises(KeyError):
        made["other"]
    assert made == {"Name": 1, "name": 2, "Größe": 3}
    assert str(made).startswith("Name  : 1\n")


def test_text_and_json_are_bounded_where_an_object_unfolds(monkeypatch: pytest.MonkeyPatch) -> None:
    value: Any = ["x" * 50]
    for _ in range(40):
        value = [value] * 3
    assert len(text_of(value)) == records.MAX_TEXT_CHARACTERS + len("...")
    monkeypatch.setattr(records, "MAX_JSON_VALUES", 1000)
    with pytest.raises(HvsockError, match="too much for JSON"):
        to_json(value)


def test_one_line_does_nothing_to_a_terminal() -> None:
    assert one_line("a\r\n\x1b[31m b\t c") == "a  [31m b c"
    error = ScriptError(ErrorDetail("bad\n\x1b[2J", activity="Get-X"))
    assert str(error) == "Get-X: bad  [2J"


def test_a_result_is_checked_by_its_first_error() -> None:
    good = Result(records=[Record(Stream.WARNING, "careful")])
    assert good.check() is good
    bad = Result(records=[Record(Stream.ERROR, ErrorDetail("one")), Record(Stream.ERROR, ErrorDetail("two"))])
    with pytest.raises(ScriptError, match=r"^one$") as caught:
        bad.check()
    assert caught.value.detail.message == "one"


# -- the language of hvsock.testing.psrp_server


@pytest.mark.parametrize(
    ("script", "statements"),
    [
        ("", []),
        ("  # nothing\n;;\n", []),
        ("1; -2.5", [Statement((Literal(1),)), Statement((Literal(-2.5),))]),
        ("1..3", [Statement((Range(1, 3),))]),
        ("'it''s', \"a`n$x\"", [Statement((Items((Literal("it's"), Text("a\n$x"))),))]),
        ("$x = 1, 2", [Statement((Items((Literal(1), Literal(2))),), target="x")]),
        ("throw", [Statement(throws=True)]),
        ("throw $e", [Statement((Variable("e"),), throws=True)]),
        ("@()", [Statement((Items(()),))]),
        ("@(1)", [Statement((Items((Literal(1),)),))]),
        ("@{a = 1; 'b'=2\n}", [Statement((Table((("a", Literal(1)), ("b", Literal(2)))),))]),
        ("[PSCustomObject]@{a=1}", [Statement((Table((("a", Literal(1)),), is_object=True),))]),
        (
            "Get-X a -Name:n -Switch `\n -Size 5 | Out-String -Stream",
            [
                Statement(
                    (
                        Call(
                            "Get-X",
                            (
                                ("", Literal("a")),
                                ("name", Literal("n")),
                                ("switch", Literal(True)),
                                ("size", Literal(5)),
                            ),
                        ),
                        Call("Out-String", (("stream", Literal(True)),)),
                    )
                )
            ],
        ),
    ],
)
def test_scripts_are_read(script: str, statements: list[Statement]) -> None:
    assert parse(script) == statements


@pytest.mark.parametrize(
    "script",
    [
        "1 1",
        "1 |",
        "1 | 2",
        "'open",
        "@{a}",
        "@{a=}",
        "@(1",
        "[pscustomobject]1",
        "= 1",
        "}",
        "(1)",
        "1,",
        "@{1=2}",
    ],
)
def test_what_is_no_script(script: str) -> None:
    with pytest.raises(ScriptSyntaxError):
        parse(script)


def test_scripts_are_bounded() -> None:
    assert parse("@(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1))
    with pytest.raises(ScriptSyntaxError, match="deep"):
        parse("@(" * 1000 + "1" + ")" * 1000)
    with pytest.raises(ScriptSyntaxError, match="characters"):
        parse(" " * (MAX_SCRIPT_CHARACTERS + 1))


def test_variables_stand_for_their_values() -> None:
    assert with_variables("$Name is $size, $none", {"name": "x", "size": 5}) == "x is 5, "


def test_the_server_program_says_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    from hvsock.testing import psrp_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["psrp_server", "-s", "-Command", "1"])
        assert psrp_server.main() == 2
    assert "unknown option -Command" in capsys.readouterr().err
