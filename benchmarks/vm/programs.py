"""The programs that the benchmark needs: its own, in C, and vhost-device-vsock; made once and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from typing import Final

import platformdirs

from hvsock.errors import NotFoundError, StateError

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

CRATE: Final = "vhost-device-vsock"
CRATE_VERSION: Final = "0.3.0"
"""The release that the figures are compared with."""
INSTALL_COMPILER: Final = "apt-get install -y gcc libc6-dev"
_SOURCES: Final = {
    "driver": ("driver.c", "front_end.c"),
    "host": ("host.c",),
    "guest": ("guest.c",),
}
_HEADERS: Final = ("workload.h", "front_end.h")
# a packet's bytes are read by types of their own, as the kernel does
_FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing")
_STATIC: Final = {"guest"}
"""Programs that run in a guest, whose libraries may be others."""


def cache_folder() -> str:
    """Where programs are kept: in the user's cache folder."""
    return os.path.join(platformdirs.user_cache_dir("hvsock"), "benchmarks")


def compiled(name: str) -> str:
    """The path of the program "driver", "host" or "guest", compiled when its source has changed.

    Raises:
        NotFoundError: there is no C compiler.
        StateError: it does not compile.
    """
    here = os.path.dirname(__file__)
    sources = [os.path.join(here, source) for source in _SOURCES[name]]
    flags = [*_FLAGS, *(["-static"] if name in _STATIC else [])]
    digest = hashlib.sha256(repr(flags).encode())
    for path in (*sources, *(os.path.join(here, header) for header in _HEADERS)):
        with open(path, "rb") as file:
            digest.update(file.read())
    program = os.path.join(cache_folder(), f"{name}-{digest.hexdigest()[:16]}")
    if os.path.exists(program):
        return program
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NotFoundError(f"there is no C compiler; as root, on Debian and Ubuntu: {INSTALL_COMPILER}")
    os.makedirs(cache_folder(), mode=0o700, exist_ok=True)
    draft = f"{program}.{os.getpid()}"
    done = subprocess.run([compiler, *flags, "-o", draft, *sources], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StateError(f"{name} does not compile:\n{done.stderr}")
    os.replace(draft, program)
    return program


def installed_vhost_device(path: str | None = None) -> str | None:
    """The path of vhost-device-vsock: `path`, or one in PATH or in the cache folder; None where there is none."""
    for found in (path, shutil.which(CRATE), os.path.join(_root(), "bin", CRATE)):
        if found is not None and os.access(found, os.X_OK):
            return found
    return None


def _root() -> str:
    return os.path.join(cache_folder(), f"{CRATE}-{CRATE_VERSION}")


def vhost_device(path: str | None = None) -> str:
    """The path of vhost-device-vsock: `path`, or one in PATH or in the cache folder, where cargo installs it.

    Raises:
        NotFoundError: it is not there, and neither is cargo.
        StateError: cargo does not install it.
    """
    found = installed_vhost_device(path)
    if found is not None:
        return found
    root = _root()
    cargo = shutil.which("cargo")
    if cargo is None:
        raise NotFoundError(
            f"{CRATE} is not installed, nor is cargo, which installs it: see https://rustup.rs, "
            f"then  cargo install {CRATE} --version {CRATE_VERSION}"
        )
    print(f"cargo installs {CRATE} {CRATE_VERSION}, which takes some minutes", file=sys.stderr)
    command = [cargo, "install", CRATE, "--version", CRATE_VERSION, "--locked", "--root", root]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise StateError(f"{' '.join(command)}: it failed, see above")
    return os.path.join(root, "bin", CRATE)
