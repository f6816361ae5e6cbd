"""Packages of Debian 12, found, fetched and checked by apt, and unpacked, without root.

apt is asked three ways, until one gives all that is wanted: with the lists of packages that the machine has;
with lists of the machine's own sources, fetched into a private folder; and with lists of the sources in the
file that HVSOCK_APT_SOURCES names, for machines that are not Debian 12.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

from hvsock.errors import StateError

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

APT_SECONDS: Final = 600
"""How long one run of apt or dpkg may take: a kernel is 35 MB, and some networks are slow."""
SOURCES_VARIABLE: Final = "HVSOCK_APT_SOURCES"
"""Environment variable: a file in the form of sources.list(5) with a mirror of Debian 12."""
TOOLS: Final = {"apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}
"""The programs that this module runs, and the packages that have them."""
ARCHITECTURE: Final = "amd64"

Progress = Callable[[str], None]
"""Is told what is done now, in a few words."""


class Package(NamedTuple):
    """A package as a list of packages has it.

    Attributes:
        name: its name.
        version: its version.
        sha256: the checksum of its file, in hexadecimal.
        needs: the names of the packages that it depends on.
    """

    name: str
    version: str
    sha256: str
    needs: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of its file in a folder of ours."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.sha256[:16]}.deb"


T = TypeVar("T")


class _AptError(Exception):
    """apt has not done what it was asked; its text says why."""


class Archive:
    """Debian's packages, for as long as something is made of them.

    Args:
        folder: where files of packages are kept; made if it is not there.
        progress: is told what is done.

    Raises:
        StateError: a program is missing.
    """

    def __init__(self, folder: str, progress: Progress) -> None:
        for tool, package in TOOLS.items():
            if shutil.which(tool) is None:
                raise StateError(
                    f"the guest image is made of Debian's packages, and {tool} is missing; on Debian and Ubuntu: "
                    f"apt-get install -y {package}; elsewhere start VMs with --kernel and --initrd of your own"
                )
        self._folder = folder
        self._progress = progress
        self._updated: set[str] = set()
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def resolve(self, names: Sequence[str]) -> dict[str, Package]:
        """The newest versions of packages, as lists of packages have them.

        Raises:
            StateError: no list has them, and none can be fetched.
        """
        return self._try_each(lambda options: _resolve(names, options))

    def fetch(self, packages: Sequence[Package]) -> None:
        """Have the files of `packages` in the folder.

        Raises:
            StateError: they cannot be fetched, or are not what the lists say.
        """
        missing = [one for one in packages if not os.path.exists(self._path(one))]
        if missing:
            self._progress(f"fetching {len(missing)} packages")
            self._try_each(lambda options: self._download(missing, options))

    def unpack(self, packages: Iterable[Package], target: str) -> None:
        """Unpack the files of `packages`, which are there, into the folder `target`.

        Raises:
            StateError: a file is damaged; it is removed.
        """
        for package in packages:
            try:
                _run(["dpkg-deb", "--extract", self._path(package), target])
            except _AptError as error:
                os.unlink(self._path(package))
                raise StateError(f"the file of package {package.name} was damaged, try again: {error}") from None

    def _path(self, package: Package) -> str:
        return os.path.join(self._folder, package.file)

    def _download(self, packages: Sequence[Package], options: Sequence[str]) -> None:
        fresh = os.path.join(self._folder, f"new-{os.getpid()}")
        os.makedirs(fresh, mode=0o700)
        try:
            _run(
                ["apt-get", *options, "download", *(f"{one.name}={one.version}" for one in packages)], folder=fresh
            )
            found = {}
            for name in os.listdir(fresh):
                with open(path := os.path.join(fresh, name), "rb") as file:
                    found[hashlib.file_digest(file, "sha256").hexdigest()] = path
            for package in packages:
                if package.sha256 not in found:
                    raise _AptError(f"what came for {package.name} has not the checksum {package.sha256}")
                os.replace(found[package.sha256], self._path(package))
        finally:
            shutil.rmtree(fresh)

    def _try_each(self, ask: Callable[[Sequence[str]], T]) -> T:
        """What `ask` gives with the options of the first way to apt on which it works."""
        reasons = []
        for name, options in self._ways():
            try:
                return ask(options())
            except _AptError as error:
                reasons.append(f"{name}: {error}")
        raise StateError(
            f"Debian's packages cannot be had ({'; '.join(reasons)}); with a network, as root: apt-get update; on "
            f"another system, set {SOURCES_VARIABLE} to a file with Debian 12's sources"
        )

    def _ways(self) -> Iterator[tuple[str, Callable[[], Sequence[str]]]]:
        """The ways to apt: what each is called, and what gives the options for it."""
        common = ("-q", "-o", "APT::Sandbox::User=root", "-o", f"APT::Architecture={ARCHITECTURE}")
        yield "the machine's lists", lambda: common
        yield "the machine's sources", lambda: (*common, *self._private_lists("machine", common, ()))
        if named := os.environ.get(SOURCES_VARIABLE):
            chosen = (
                "-o",
                f"Dir::Etc::SourceList={os.path.abspath(named)}",
                "-o",
                "Dir::Etc::SourceParts=/dev/null",
            )
            yield named, lambda: (*common, *self._private_lists("named", common, chosen))

    def _private_lists(self, name: str, common: Sequence[str], sources: Sequence[str]) -> Sequence[str]:
        """The options for lists in a folder of ours, which are fetched if they are not of this run."""
        state = os.path.join(self._folder, f"lists-{name}")
        options = (*sources, "-o", f"Dir::State::Lists={state}", "-o", f"Dir::Cache={state}/cache")
        if state not in self._updated:
            self._progress("fetching lists of packages")
            for folder in (f"{state}/partial", f"{state}/cache/archives/partial"):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            _run(["apt-get", *common, *options, "update", "--error-on=any"])
            self._updated.add(state)
        return options


def _resolve(names: Sequence[str], options: Sequence[str]) -> dict[str, Package]:
    text = _run(["apt-cache", *options, "show", "--no-all-versions", *names])
    found = {one.name: one for one in parse_records(text)}
    if missing := [name for name in names if name not in found]:
        raise _AptError(f"there is no package {missing[0]}")
    return {name: found[name] for name in names}


def parse_records(text: str) -> Iterator[Package]:
    """The packages in a list of them, as apt-cache prints it; those without a file of their own are left out."""
    for record in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", record, re.MULTILINE))
        if {"Package", "Version", "SHA256"} <= fields.keys():
            needs = tuple(one.split()[0] for one in fields.get("Depends", "").split(",") if one.strip())
            yield Package(fields["Package"], fields["Version"], fields["SHA256"], needs)


def _run(command: Sequence[str], *, folder: str | None = None) -> str:
    """What `command` prints.

    Raises:
        _AptError: it failed, or took too long.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _AptError(f"{command[0]} took more than {APT_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "dpkg-deb: error"))] or lines
        raise _AptError(errors[0] if errors else f"{command[0]} ended with code {done.returncode}")
    return done.stdout
