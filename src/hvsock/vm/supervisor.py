"""The process of one VM: runs QEMU and the process of its vsock device, and does what is asked of it.

Started by :mod:`.launch` in the VM's folder. QEMU's end is the VM's end. When the device's process ends, another
takes its place and the device is plugged out and in, by which the guest gets its sockets back without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import IO, Any, Final

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError

from hvsock.errors import HvsockError, ProtocolError, StateError

from . import children, qemu
from .control import MAX_LINE_BYTES, STOP_SECONDS
from .runs import CONTROL_SOCKET, RECORD, SUPERVISOR_LOG, Record, Settings, State, read_settings, write_json

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

SOCKET_SECONDS: Final = 20.0
"""How long a child may take to make its socket; they take a tenth of a second."""
LOOK_SECONDS: Final = 0.02
"""Pause between two looks for a file."""
QUIT_SECONDS: Final = 3.0
"""How long QEMU may take to end when it is told to."""
UNPLUG_SECONDS: Final = 60.0
"""How long a guest may take to let go of its vsock device: one that has just been started has to come up first."""
ASK_AGAIN_SECONDS: Final = 1.5
"""Pause before the guest is asked again; QEMU refuses to for one second."""
FOLDER_SECONDS: Final = 1.0
"""Pause between two looks whether the VM's folder is still there."""
ANSWER_SECONDS: Final = 1.0
"""How long those who asked may take to get their answer before the supervisor ends; silent ones get none."""
MAX_DEVICE_RESTARTS: Final = 5
"""How often in a row the device's process is started again: one that ends each time will not get better."""
STEADY_SECONDS: Final = 60.0
"""A device's process that ran for so long has not ended in a row with others."""
_REFUSED: Final = os.strerror(errno.ECONNREFUSED)
"""What an error says, QEMU's too, when nobody listens at a socket."""


class Supervisor:
    """Runs one VM, in the folder that is the working folder.

    Args:
        settings: what the VM is started with.
        log: where the children's output goes.
    """

    def __init__(self, settings: Settings, log: IO[bytes]) -> None:
        self._settings = settings
        self._log = log
        self._qmp = QMPClient(settings.name)
        self._qemu: asyncio.subprocess.Process | None = None
        self._device: asyncio.subprocess.Process | None = None
        self._is_plugged = bool(settings.device)
        self._chardevs = 0
        self._ended = asyncio.Event()
        self._changed = asyncio.Condition()
        self._asked = ""
        self._answering: set[asyncio.Task[Any]] = set()
        hardware = settings.hardware
        self._record = Record(
            name=settings.name,
            vm_id=settings.vm_id,
            cid=settings.cid,
            state=State.STARTING,
            accelerator=settings.accelerator,
            memory=hardware.memory,
            cpus=hardware.cpus,
            kernel=settings.kernel,
            started=time.time(),
        )

    async def run(self, started: Callable[[str], None]) -> None:
        """Run the VM to its end.

        Args:
            started: is called once: with "" when the VM runs, else with the reason why it does not.
        """
        self._save()
        tasks: list[asyncio.Task[None]] = []
        server: asyncio.Server | None = None
        try:
            try:
                await self._start()
                server = await asyncio.start_unix_server(self._serve, CONTROL_SOCKET, limit=MAX_LINE_BYTES)
            except (HvsockError, OSError, QMPError) as error:
                self._record.reason = str(error)
                started(self._record.reason)
                return
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop_soon, tasks)
            watchers = [self._watch_qemu(), self._watch_events(), self._watch_console(), self._watch_folder()]
            if self._device is not None:
                watchers.append(self._watch_device())
            tasks += [asyncio.create_task(watcher) for watcher in watchers]
            started("")
            await self._ended.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._end_all()
            if server is not None:
                server.close()
            if self._answering:
                await asyncio.wait(self._answering, timeout=ANSWER_SECONDS)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(CONTROL_SOCKET)

    # -- starting

    async def _start(self) -> None:
        settings = self._settings
        if settings.device:
            await self._start_device()
        command = qemu.command_line(
            settings.qemu,
            settings.name,
            settings.accelerator,
            settings.hardware,
            chardev=self._chardev if settings.device else None,
        )
        self._qemu = await children.start(command, output=self._log)
        self._record.qemu_pid = self._qemu.pid
        await self._wait_for_socket(qemu.QMP_SOCKET, self._qemu, "QEMU")
        await _patiently(lambda: self._qmp.connect(qemu.QMP_SOCKET))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(qemu.INITRD)  # QEMU has it in its memory
        await self._qmp.execute("cont")
        self._record.state = State.RUNNING
        self._save()

    @property
    def _chardev(self) -> str:
        """The id of QEMU's connection to the device's process; each has one of its own."""
        return f"vsock-{self._chardevs}"

    async def _start_device(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(qemu.DEVICE_SOCKET)
        self._device = await children.start(self._settings.device, output=self._log)
        self._record.device_pid = self._device.pid
        await self._wait_for_socket(qemu.DEVICE_SOCKET, self._device, "the vsock device")

    async def _wait_for_socket(self, name: str, child: asyncio.subprocess.Process, who: str) -> None:
        deadline = time.monotonic() + SOCKET_SECONDS
        while not _is_there(name):
            if child.returncode is not None:
                raise StateError(f"{who} {children.ending(child)}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise StateError(f"{who} made no socket in {SOCKET_SECONDS:g} s: {self._last_words()}")
            await asyncio.sleep(LOOK_SECONDS)

    def _last_words(self) -> str:
        """The last line of the log."""
        with open(SUPERVISOR_LOG, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        return lines[-1] if lines else "it said nothing"

    # -- watching

    async def _watch_qemu(self) -> None:
        assert self._qemu is not None
        await self._qemu.wait()
        if not self._asked:
            self._asked = f"QEMU {children.ending(self._qemu)}"
        await self._change(state=State.STOPPED, reason=self._asked, ready=False, qemu_pid=0)
        self._ended.set()

    async def _watch_events(self) -> None:
        with self._qmp.listener(("STOP", "RESUME", "SHUTDOWN")) as listener:
            async for event in listener:
                if event["event"] == "SHUTDOWN":
                    self._asked = self._asked or "the guest switched itself off"
                else:
                    paused = event["event"] == "STOP"
                    await self._change(state=State.PAUSED if paused else State.RUNNING)

    async def _watch_folder(self) -> None:
        """End the VM when its folder is removed: nobody could reach it any more."""
        while True:
            await asyncio.sleep(FOLDER_SECONDS)
            if not _is_there(CONTROL_SOCKET):
                return await self._kill()

    async def _watch_console(self) -> None:
        """Look for the guest's word that it is up."""
        marker = self._settings.marker.encode()
        if not marker:
            return
        seen = b""
        with _console() as file:
            while marker not in seen:
                await asyncio.sleep(LOOK_SECONDS)
                seen = seen[-len(marker) :] + file.read()
        await self._change(ready=True)

    async def _watch_device(self) -> None:
        """Start the device's process again each time when it ends, as long as that makes sense."""
        in_a_row, problem = 0, ""
        while True:
            assert self._device is not None
            begun = time.monotonic()
            await self._device.wait()
            problem = problem or f"the vsock device {children.ending(self._device)}"
            in_a_row = 1 if time.monotonic() - begun > STEADY_SECONDS else in_a_row + 1
            last = in_a_row > MAX_DEVICE_RESTARTS
            cure = f", {in_a_row} times in a row; start the VM again to have them back" if last else ""
            await self._change(device_pid=0, reason=f"without sockets: {problem}{cure}")
            if last:
                return
            try:
                await self._replug()
            except (HvsockError, OSError, QMPError) as error:
                problem = f"the vsock device cannot be plugged in again: {error}"
                await children.end(self._device)
            else:
                problem = ""
                await self._change(device_restarts=self._record.device_restarts + 1, reason="")

    async def _replug(self) -> None:
        """Plug the device out, and in again with another process behind it.

        Raises:
            StateError: the guest does not let go of it, or the process does not start.
            QMPError: QEMU refuses.
        """
        async with self._changed:  # a guest that is paused cannot let go
            await self._changed.wait_for(lambda: self._record.state is not State.PAUSED)
        if self._is_plugged:
            with self._qmp.listener("DEVICE_DELETED", _is_of_vsock) as gone:
                await self._unplug(gone)
            await self._qmp.execute("chardev-remove", {"id": self._chardev})
            self._is_plugged = False
        self._chardevs += 1
        await self._start_device()
        address = {"type": "unix", "data": {"path": qemu.DEVICE_SOCKET}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await _patiently(lambda: self._qmp.execute("chardev-add", {"id": self._chardev, "backend": backend}))
        device = {"driver": "vhost-user-vsock-pci", "id": qemu.VSOCK, "chardev": self._chardev}
        await self._qmp.execute("device_add", device)
        self._is_plugged = True

    async def _unplug(self, gone: EventListener) -> None:
        """Ask the guest to let go of the device until it does; one that still starts does not hear it at first."""
        deadline = time.monotonic() + UNPLUG_SECONDS
        while True:
            with contextlib.suppress(ExecuteError):  # QEMU asked a moment ago, or the device has just gone
                await self._qmp.execute("device_del", {"id": qemu.VSOCK})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.get(), ASK_AGAIN_SECONDS)
                return
            if time.monotonic() > deadline:
                raise StateError(f"the guest did not let go of it in {UNPLUG_SECONDS:g} s")

    # -- ending

    def _stop_soon(self, tasks: list[asyncio.Task[None]]) -> None:
        tasks.append(asyncio.create_task(self._stop(STOP_SECONDS)))

    async def _stop(self, seconds: float) -> None:
        """Have the guest switch itself off; after `seconds` it is switched off."""
        self._asked = "stopped"
        if self._record.state is State.PAUSED:
            await self._qmp.execute("cont")
        await self._qmp.execute("system_powerdown")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)
            return
        self._asked = f"switched off: the guest did not do so itself in {seconds:g} s"
        await self._kill()

    async def _kill(self) -> None:
        """End QEMU."""
        self._asked = self._asked or "killed"
        assert self._qemu is not None
        with contextlib.suppress(TimeoutError, QMPError):
            await asyncio.wait_for(self._qmp.execute("quit"), QUIT_SECONDS)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), QUIT_SECONDS)
            return
        self._qemu.kill()
        await self._ended.wait()

    async def _end_all(self) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()
        for child in (self._qemu, self._device):
            if child is not None:
                await children.end(child)
        reason = self._asked or self._record.reason
        await self._change(state=State.STOPPED, reason=reason, pid=0, qemu_pid=0, device_pid=0)

    # -- being asked

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            answer = await self._answer(await reader.readline())
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            pass  # who asked is gone, or sent no line
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            try:
                request = json.loads(line)
                action, seconds = _ACTIONS[request["do"]], float(request["seconds"])
            except (ValueError, LookupError, TypeError):
                raise ProtocolError("a supervisor is asked by a JSON object, and for what it can do") from None
            await action(self, seconds)
        except HvsockError as error:
            return {"error": type(error).__name__, "text": str(error)}
        except QMPError as error:
            return {"error": "StateError", "text": f"QEMU refuses: {error}"}
        return {"vm": self._record.to_json()}

    async def _tell(self, seconds: float) -> None:
        """Nothing is to be done: what there is to tell is the answer."""

    async def _pause(self, seconds: float) -> None:
        await self._qmp.execute("stop")
        await self._until(lambda: self._record.state is State.PAUSED)

    async def _resume(self, seconds: float) -> None:
        await self._qmp.execute("cont")
        await self._until(lambda: self._record.state is State.RUNNING)

    async def _reset(self, seconds: float) -> None:
        await self._qmp.execute("system_reset")

    async def _kill_now(self, seconds: float) -> None:
        await self._kill()

    async def _wait(self, seconds: float) -> None:
        if not self._settings.marker:
            raise StateError("nobody knows when a guest with a kernel of its own is up")
        try:
            await asyncio.wait_for(self._until(lambda: self._record.ready), seconds)
        except TimeoutError:
            raise StateError(
                f"the guest did not say that it is up in {seconds:g} s; see: hvsock vm console"
            ) from None

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: reached() or self._record.state is State.STOPPED)
        if not reached():
            raise StateError(f"the VM stopped: {self._record.reason}")

    # -- what there is to tell

    async def _change(self, **values: Any) -> None:
        async with self._changed:
            for name, value in values.items():
                setattr(self._record, name, value)
            self._save()
            self._changed.notify_all()

    def _save(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # the folder was removed
            write_json(RECORD, self._record.to_json())


_ACTIONS: Final[dict[str, Callable[[Supervisor, float], Awaitable[None]]]] = {
    "status": Supervisor._tell,
    "pause": Supervisor._pause,
    "resume": Supervisor._resume,
    "reset": Supervisor._reset,
    "stop": Supervisor._stop,
    "kill": Supervisor._kill_now,
    "wait": Supervisor._wait,
}


async def _patiently(connect: Callable[[], Awaitable[object]]) -> None:
    """Make a connection to a socket that is there, at which somebody is about to listen.

    Raises:
        QMPError: nobody does, or something else is wrong.
    """
    deadline = time.monotonic() + SOCKET_SECONDS
    while True:
        try:
            await connect()
            return
        except (ConnectError, ExecuteError) as error:
            if _REFUSED not in str(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(LOOK_SECONDS)


def _is_of_vsock(event: Message) -> bool:
    data = event["data"]
    return isinstance(data, dict) and data.get("device") == qemu.VSOCK


def _is_there(name: str) -> bool:
    return os.path.exists(name)


def _console() -> IO[bytes]:
    return open(qemu.CONSOLE_LOG, "rb")


def main(pipe: int | None) -> int:
    """Run the VM whose folder is the working folder, to its end; returns the exit code.

    Args:
        pipe: gets one line, empty when the VM runs and else the reason why it does not, and is closed; the
            supervisor is nobody's child then. Without one, that reason goes to standard error.
    """
    if pipe is not None and os.fork():
        os._exit(0)
    reasons = []

    def tell(reason: str) -> None:
        reasons.append(reason)
        if pipe is not None:
            os.write(pipe, reason.encode()[: MAX_LINE_BYTES - 1] + b"\n")
            os.close(pipe)
        elif reason:
            print(f"hvsock: the VM does not start: {reason}", file=sys.stderr)

    with open(SUPERVISOR_LOG, "ab") as log:
        asyncio.run(Supervisor(read_settings("."), log).run(tell))
    return 1 if any(reasons) else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else None))
