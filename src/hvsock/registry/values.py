"""Settings and times as plain JSON values, and strictly back; the file database and the JSON format share them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from hvsock.errors import UsageError
from hvsock.topology.access import Access, Allowed, Settings
from hvsock.topology.sddl import format_sddl, parse_sddl

from .entries import check_settings, quoted

MAX_TIME: Final = 253_402_300_799.0
"""Seconds since 1970 of the last second of the year 9999, the last that ISO 8601 writes with four digits."""


def rounded_time(now: float) -> float:
    """`now` in whole microseconds, so that it survives its written form.

    Args:
        now: seconds since 1970 (UTC).

    Raises:
        UsageError: before 1970 or after 9999.
    """
    if not (math.isfinite(now) and 0 <= now <= MAX_TIME):
        raise UsageError(f"a time is from 1970 to 9999, not {now!r} seconds since 1970")
    return round(float(now), 6)


def time_to_text(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, like ``2026-01-31T12:00:00.000000Z``."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_from_text(text: Any, where: str) -> float:
    """The seconds since 1970 that ISO 8601 `text` means.

    Args:
        text: a date and time with its offset from UTC.
        where: what the value is, for the error.

    Raises:
        UsageError: anything else.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError("no offset")
        return rounded_time(moment.timestamp())
    except (TypeError, ValueError, OverflowError):
        shown = quoted(text) if isinstance(text, str) else type(text).__name__
        raise UsageError(f"{where} is a time like 2026-01-31T12:00:00Z, not {shown}") from None


def settings_to_value(settings: Settings) -> dict[str, Any]:
    """`settings` as a JSON object; what they leave open is left out."""
    value: dict[str, Any] = {}
    if settings.enabled is not None:
        value["enabled"] = settings.enabled
    if settings.wildcard_binds is not None:
        value["wildcard_binds"] = settings.wildcard_binds
    if settings.bind is not None:
        value["bind"] = _access_to_value(settings.bind)
    if settings.connect is not None:
        value["connect"] = _access_to_value(settings.connect)
    if settings.denied is not None:
        value["denied"] = sorted(settings.denied)
    return value


def settings_from_value(value: Any, where: str) -> Settings:
    """The settings that a JSON object holds.

    Args:
        value: the decoded object; null and absent members are left open.
        where: what the value is, for the error.

    Raises:
        UsageError: it is no such object, or has other members.
    """
    members = take_object(value, where, {"enabled", "wildcard_binds", "bind", "connect", "denied"})
    return check_settings(
        Settings(
            enabled=_take_bool(members.get("enabled"), f"{where}.enabled"),
            wildcard_binds=_take_bool(members.get("wildcard_binds"), f"{where}.wildcard_binds"),
            bind=_access_from_value(members.get("bind"), f"{where}.bind"),
            connect=_access_from_value(members.get("connect"), f"{where}.connect"),
            denied=_denied_from_value(members.get("denied"), f"{where}.denied"),
        )
    )


def _denied_from_value(value: Any, where: str) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise UsageError(f"{where} is an array of strings, not {json_type(value)}")
    return frozenset(take_text(one, where) for one in value)


def take_object(value: Any, where: str, known: Collection[str]) -> Mapping[str, Any]:
    """`value`, if it is a JSON object with no members but `known` ones.

    Raises:
        UsageError: it is not, or has.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{where} is an object, not {json_type(value)}")
    for member in value:
        if member not in known:
            raise UsageError(f"{where} has no member {quoted(member)}; known are: {', '.join(sorted(known))}")
    return value


def json_type(value: Any) -> str:
    """What JSON calls the type of a decoded value."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number"}
    return "null" if value is None else names.get(type(value), "a number")


def take_text(value: Any, where: str) -> str:
    """`value`, if it is a JSON string.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, str):
        raise UsageError(f"{where} is a string, not {json_type(value)}")
    return value


def sddl_from_value(value: Any, where: str) -> Access:
    """The security descriptor that a JSON string spells.

    Raises:
        UsageError: it is no string, or spells none; the text says where.
    """
    try:
        return parse_sddl(take_text(value, where))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _access_to_value(access: Access) -> dict[str, Any]:
    if not isinstance(access, Allowed):
        return {"sddl": format_sddl(access)}
    return {"everyone": access.everyone, "uids": sorted(access.uids), "gids": sorted(access.gids)}


def _access_from_value(value: Any, where: str) -> Access | None:
    if value is None:
        return None
    if isinstance(value, dict) and "sddl" in value:
        return sddl_from_value(take_object(value, where, {"sddl"})["sddl"], f"{where}.sddl")
    members = take_object(value, where, {"everyone", "uids", "gids"})
    return Allowed(
        everyone=bool(_take_bool(members.get("everyone", False), f"{where}.everyone")),
        uids=_take_ids(members.get("uids", []), f"{where}.uids"),
        gids=_take_ids(members.get("gids", []), f"{where}.gids"),
    )


def _take_bool(value: Any, where: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{where} is true or false, not {json_type(value)}")
    return value


def _take_ids(value: Any, where: str) -> frozenset[int]:
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise UsageError(f"{where} is an array of whole numbers")
    return frozenset(value)
