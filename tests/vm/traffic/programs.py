"""Programs that know nothing of hvsock, for guests: of Debian, and in Go and Rust."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from hvsock.errors import HvsockError

assert sys.platform == "linux"

from hvsock.vm.debian import Archive
from hvsock.vm.layers import Store, images_folder, key_of

SOURCES: Final = Path(__file__).parent.parent.parent / "interop" / "guests"
BUILD_SECONDS: Final = 300.0
"""How long a build may take, with what it fetches."""
PACKAGES: Final = {
    "socat": (
        *("socat", "libwrap0", "libnsl2", "libtirpc3", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3"),
        *("libkrb5support0", "libcom-err2", "libkeyutils1"),
    ),
    "ncat": (
        *("ncat", "liblua5.3-0", "libstdc++6", "libgcc-s1", "libpcap0.8", "libdbus-1-3", "libsystemd0"),
        *("libcap2", "libgcrypt20", "libgpg-error0", "liblz4-1", "libzstd1"),
    ),
}
"""Debian's programs, with the libraries that the default guest lacks."""
_LEFT_OUT: Final = ("usr/share", "etc", "usr/lib/systemd")
COMPILED: Final = {
    "go": (("go", "build", "-trimpath", "-o"), {"CGO_ENABLED": "0"}),
    "rust": (
        ("cargo", "build", "--release", "--locked", "--target", "x86_64-unknown-linux-gnu", "--target-dir"),
        {"RUSTFLAGS": "-C target-feature=+crt-static"},
    ),
}
"""How each language builds a program that needs nothing of the guest: the command, ahead of where to, and its
environment."""


class Programs:
    """A folder with all the programs that can be had here, to go over a guest's files.

    Args:
        folder: a fresh one.

    Attributes:
        missing: why a program is not there, by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: dict[str, str] = {}
        for name, packages in PACKAGES.items():
            try:
                self._unpack(packages)
            except HvsockError as error:
                self.missing[name] = f"Debian's {name} cannot be had: {error}"
        for name in _LEFT_OUT:
            shutil.rmtree(folder / name, ignore_errors=True)
        target = folder / "usr" / "local" / "bin"
        target.mkdir(parents=True)
        for name in COMPILED:
            reason = _build(name, target / f"{name}-echo")
            if reason:
                self.missing[name] = reason

    def _unpack(self, packages: tuple[str, ...]) -> None:
        archive = Archive(Store(images_folder()).packages, lambda _: None)
        found = list(archive.resolve(packages).values())
        archive.fetch(found)
        archive.unpack(found, str(self.folder))


def _build(name: str, target: Path) -> str:
    """Build the program of a language, unless it is in the cache; why that cannot be done, or an empty text."""
    command, environment = COMPILED[name]
    source = SOURCES / name
    texts = [path.read_text() for path in sorted(source.rglob("*")) if path.is_file()]
    cache = Path(images_folder()).parent / "programs"
    kept = cache / f"{name}-{key_of(texts, command, environment)}"
    if not kept.exists():
        if shutil.which(command[0]) is None:
            return f"{command[0]} is not installed"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = cache / f"new-{name}-{os.getpid()}"
        built = work / "echo" if name == "go" else work / "x86_64-unknown-linux-gnu" / "release" / "echo"
        work.mkdir()
        try:
            done = subprocess.run(
                [*command, str(built if name == "go" else work)],
                cwd=source,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS,
                check=False,
            )
            if done.returncode:
                return f"{command[0]} does not build it: {done.stderr[-500:]}"
            os.replace(built, kept)
        finally:
            shutil.rmtree(work)
    shutil.copy(kept, target)
    return ""
