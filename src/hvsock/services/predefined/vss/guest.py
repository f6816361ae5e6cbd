"""The guest half of VSS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

from hvsock.errors import BusyError, HvsockError, NotReadyError, RefusedError, UsageError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.service import call, exchange

from . import hooks, mounts
from .interface import (
    MAX_FILE_SYSTEMS,
    MAX_FREEZE_SECONDS,
    MAX_HOOKS,
    MAX_PATH_BYTES,
    MAX_TEXT_BYTES,
    Check,
    Checked,
    FileSystem,
    Hook,
    Report,
    Request,
    State,
    Step,
    Vss,
    Why,
)
from .keeping import Keeping, Setting, log_held_back, opened

if sys.platform != "linux":
    raise ImportError("file systems are frozen by Linux")

log = logging.getLogger(__name__)

_CAP_SYS_ADMIN: Final = 21
_WHY: Final = {
    "asked": Why.ASKED,
    "timed out": Why.TIMED_OUT,
    "host lost": Why.HOST_LOST,
    "ended": Why.ENDED,
    "others": Why.OTHERS,
}


class GuestVss(Vss):
    """Freezes the file systems of this machine, one freeze at a time.

    Args:
        surroundings: says whose machine it is.
        setting: what freezes are made with.
    """

    def __init__(self, surroundings: Surroundings, setting: Setting | None = None) -> None:
        self._surroundings = surroundings
        self._setting = Setting() if setting is None else setting
        self._task: asyncio.Task[None] | None = None

    @call(idempotent=True)
    async def check(self, caller: Caller, question: Check) -> Checked:
        """See :class:`Vss`."""
        found = await asyncio.to_thread(self._look)
        return Checked(found.obstacle, found.file_systems, found.hooks, self._is_busy)

    @exchange
    async def freeze(self, caller: Caller, questions: AsyncIterator[Request]) -> AsyncIterator[Report]:
        """See :class:`Vss`."""
        self._surroundings.check_own_machine("freezing file systems")
        first = await anext(questions, None)
        if first is None or first.step is not Step.FREEZE:
            raise UsageError("a freeze begins with the request to freeze")
        if not 0 < first.timeout <= MAX_FREEZE_SECONDS:
            raise UsageError(
                f"a freeze of {first.timeout:g} s is none: up to {MAX_FREEZE_SECONDS:g} s can be asked for"
            )
        if self._is_busy:
            raise BusyError("a freeze is under way already, or its hooks are; try again later")
        reports: asyncio.Queue[Report | HvsockError | None] = asyncio.Queue()
        freeze = _Freeze(self._setting, first.timeout, reports)
        self._task = task = asyncio.create_task(self._run(freeze))
        asking = asyncio.create_task(_thaw_wanted(questions, freeze))
        asking.add_done_callback(
            lambda one: None if one.cancelled() or one.exception() is None else freeze.let_go()
        )
        try:
            while (report := await reports.get()) is not None:
                if isinstance(report, HvsockError):
                    raise report
                yield report
        finally:
            asking.cancel()
            freeze.let_go()
            await asyncio.wait({task, asking})

    async def _run(self, freeze: _Freeze) -> None:
        """Run it; the machine stays on meanwhile, as far as services have a say in that."""
        with self._surroundings.holds.hold("file systems are frozen for a backup"):
            await freeze.run()

    @property
    def _is_busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def _look(self) -> Checked:
        try:
            self._surroundings.check_own_machine("freezing file systems")
            obstacle = "" if _may_freeze() else "the agent lacks the capability CAP_SYS_ADMIN; run it as root"
        except RefusedError as error:
            obstacle = str(error)
        targets = _open_targets(self._setting.mountinfo)
        for target in targets:
            target.close()
        systems = [one.shown for one in targets]
        found = [
            Hook(_text(one.name), one.obstacle and _text(one.obstacle)) for one in hooks.find(self._setting.hooks)
        ]
        if not obstacle and all(one.obstacle for one in systems):
            obstacle = "no file system here can be frozen"
        if not obstacle:
            obstacle = next((f"hook {one.name}: {one.obstacle}" for one in found if one.obstacle), "")
        return Checked(obstacle, systems[:MAX_FILE_SYSTEMS], found[:MAX_HOOKS])


async def _thaw_wanted(questions: AsyncIterator[Request], freeze: _Freeze) -> None:
    """Thaw once the host says so, or says nothing any more."""
    async for request in questions:
        if request.step is Step.THAW:
            freeze.thaw()
            return
    freeze.let_go()


class _Freeze:
    """One freeze, which goes on to its end whether somebody listens or not.

    Args:
        setting: what it is made with.
        timeout: seconds.
        reports: where it tells how far it is; an error and None are the last things.
    """

    def __init__(
        self, setting: Setting, timeout: float, reports: asyncio.Queue[Report | HvsockError | None]
    ) -> None:
        self._setting = setting
        self._timeout = timeout
        self._reports = reports
        self._keeping: Keeping | None = None
        self._is_over = False

    def thaw(self) -> None:
        """Thaw, since the host asked for it."""
        self._is_over = True
        if self._keeping is not None:
            self._keeping.thaw()

    def let_go(self) -> None:
        """Thaw, since nobody asks for anything any more. Calling this twice is fine."""
        self._is_over = True
        if self._keeping is not None:
            self._keeping.let_go()

    async def run(self) -> None:
        """All of it."""
        targets: list[_Target] = []
        try:
            targets = await asyncio.to_thread(_open_targets, self._setting.mountinfo)
            freezing = [(one.descriptor, one.shown.path) for one in targets if one.descriptor is not None]
            if not freezing:
                raise NotReadyError("no file system here can be frozen; hvsock vss check says why")
            with log_held_back():
                self._keeping = await asyncio.to_thread(Keeping, self._setting, self._timeout, freezing)
                if self._is_over:
                    self._keeping.let_go()
                async with contextlib.aclosing(self._keeping.events()) as events:
                    await self._follow(events, [one.shown for one in targets])
        except HvsockError as error:
            self._reports.put_nowait(error)
        except OSError as error:
            self._reports.put_nowait(NotReadyError(f"a freeze cannot begin: {error.strerror or error}"))
        finally:
            for target in targets:
                target.close()
            self._reports.put_nowait(None)

    async def _follow(self, events: AsyncGenerator[dict[str, Any], None], systems: list[FileSystem]) -> None:
        failure, warnings = "", []
        async for event in events:
            match event["event"]:
                case "frozen":
                    listed = systems[:MAX_FILE_SYSTEMS]
                    self._reports.put_nowait(Report(State.FROZEN, seconds=event["seconds"], file_systems=listed))
                case "thawed":
                    self._reports.put_nowait(Report(State.THAWED, _WHY[event["why"]], event["seconds"]))
                    log.info("file systems were frozen for %.1f s, until: %s", event["seconds"], event["why"])
                case "failed":
                    failure = event["text"]
                case "warning":
                    warnings.append(_text(event["text"]))
                    log.warning("%s", event["text"])
        if failure:
            raise NotReadyError("; ".join([f"nothing is frozen: {failure}", *warnings]))
        self._reports.put_nowait(Report(State.DONE, warnings=warnings[:MAX_HOOKS]))


class _Target:
    """A file system, and its descriptor unless something is in the way."""

    def __init__(self, target: mounts.Target) -> None:
        self.descriptor: int | None = None
        obstacle = target.obstacle
        mount = target.mounts[0]
        if not obstacle:
            for mount in target.mounts:
                try:
                    self.descriptor = _opened_mount(mount)
                    obstacle = ""
                    break
                except OSError as error:
                    obstacle = f"{mount.path} cannot be opened: {error.strerror}"
        self.shown = FileSystem(
            _text(mount.path, MAX_PATH_BYTES),
            _text(mount.source, MAX_PATH_BYTES),
            _text(mount.kind),
            _text(obstacle),
        )

    def close(self) -> None:
        """Close the descriptor. Calling this twice is fine."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _open_targets(mountinfo: str) -> list[_Target]:
    with open(mountinfo, "rb") as file:
        return [_Target(one) for one in mounts.targets(mounts.parse(file.read()))]


def _opened_mount(mount: mounts.Mount) -> int:
    """A descriptor of this very mount.

    Raises:
        OSError: it cannot be opened, or another mount hides it.
    """
    descriptor = opened(mount.path)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            words = dict(line.split(":", 1) for line in file)
        if int(words["mnt_id"]) != mount.number:
            raise OSError(0, "another mount hides it")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _may_freeze() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        words = dict(line.split(":", 1) for line in file)
    return bool(int(words["CapEff"], 16) >> _CAP_SYS_ADMIN & 1)


def _text(text: str, most: int = MAX_TEXT_BYTES) -> str:
    """`text` for a message: in UTF-8 whatever it is, and no longer than that."""
    return text.encode("utf-8", "backslashreplace")[:most].decode("utf-8", "ignore")
