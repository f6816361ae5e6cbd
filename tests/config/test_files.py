"""Where the configuration lies, and which profile a process has."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvsock import transport
from hvsock.config import files
from hvsock.config.files import CONFIG_VARIABLE, MAX_FILE_BYTES, PROFILE_VARIABLE, candidates, settings
from hvsock.config.settings import Settings
from hvsock.errors import UsageError
from hvsock.transport import TRANSPORT_VARIABLE, Transport

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the paths are those of Linux; run this test there"
)
TEXT = """
[profiles]
default.transport = "vsock"
other.transport = "hybrid"
bad.transport = "tcp"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration with profiles."""
    file = tmp_path / "config.toml"
    file.write_text(TEXT, encoding="utf-8")
    return file


@needs_linux
@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({CONFIG_VARIABLE: "/a/b.toml", "HOME": "/h"}, ["/a/b.toml"]),
        ({"HOME": "/h"}, ["/h/.config/hvsock/config.toml", "/etc/hvsock/config.toml"]),
        ({"HOME": "/h", CONFIG_VARIABLE: ""}, ["/h/.config/hvsock/config.toml", "/etc/hvsock/config.toml"]),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, ["/x/hvsock/config.toml", "/etc/hvsock/config.toml"]),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "x"}, ["/h/.config/hvsock/config.toml", "/etc/hvsock/config.toml"]),
        ({}, ["/etc/hvsock/config.toml"]),
    ],
)
def test_where_it_lies(environ: dict[str, str], found: list[str]) -> None:
    assert list(candidates(environ)) == found


def test_the_first_that_is_there_counts(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.toml"
    monkeypatch.setattr(files, "candidates", lambda _: (str(own), str(file)))
    assert settings({}).transport == "vsock"
    own.write_text("[profiles.mine]\ntransport = 'mine'", encoding="utf-8")
    assert settings({PROFILE_VARIABLE: "mine"}).transport == "mine"
    with pytest.raises(UsageError, match=r"own.toml: there is no profile 'other'; there are: mine"):
        settings({PROFILE_VARIABLE: "other"})


def test_the_environment_wins(file: Path) -> None:
    environ = {CONFIG_VARIABLE: str(file)}
    assert transport.chosen(environ, "linux") is Transport.VSOCK
    environ[PROFILE_VARIABLE] = "other"
    assert transport.chosen(environ, "linux") is Transport.HYBRID
    environ[TRANSPORT_VARIABLE] = "fabric"
    assert transport.chosen(environ, "linux") is Transport.FABRIC
    del environ[TRANSPORT_VARIABLE]
    environ[PROFILE_VARIABLE] = "bad"
    with pytest.raises(
        UsageError, match=r"config.toml: profiles.bad.transport is 'tcp'; it may be: fabric, vsock"
    ):
        transport.chosen(environ, "linux")


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"HVSOCK_CONFIG names .*missing.toml, which is not there"):
        settings({CONFIG_VARIABLE: missing})
    monkeypatch.setattr(files, "candidates", lambda _: (missing,))
    assert settings({}) == Settings()
    with pytest.raises(
        UsageError, match=r"HVSOCK_PROFILE is 'x', and there is no configuration: looked for .*miss"
    ):
        settings({PROFILE_VARIABLE: "x"})


@needs_linux
def test_the_empty_one() -> None:
    assert settings({CONFIG_VARIABLE: "/dev/null"}) == Settings()
    with pytest.raises(UsageError, match="HVSOCK_PROFILE is 'x', and /dev/null is empty"):
        settings({CONFIG_VARIABLE: "/dev/null", PROFILE_VARIABLE: "x"})


def test_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(TEXT, encoding="utf-8-sig")
    assert settings({CONFIG_VARIABLE: str(file)}).transport == "vsock"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    environ = {CONFIG_VARIABLE: str(file)}
    file.write_bytes(b"# \xff")
    with pytest.raises(UsageError, match=r"config.toml: it is not UTF-8 at byte 2"):
        settings(environ)
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(UsageError, match=r"config.toml: a configuration has at most 262144 bytes"):
        settings(environ)
    file.write_bytes(b"#" * MAX_FILE_BYTES)
    assert settings(environ) == Settings()


@pytest.mark.parametrize("denied", [errno.EACCES, errno.EPERM])
def test_a_home_folder_that_cannot_be_entered(
    denied: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(tmp_path / f"home-{denied}" / "config.toml")

    def guarded(call: Any) -> Any:
        def act(path: Any, *rest: Any, **more: Any) -> Any:
            if path == own:
                raise OSError(denied, os.strerror(denied))
            return call(path, *rest, **more)

        return act

    monkeypatch.setattr(files, "candidates", lambda _: (own, str(file)))
    monkeypatch.setattr(os, "open", guarded(os.open))
    with monkeypatch.context() as folder:
        folder.setattr(os, "stat", guarded(os.stat))
        assert settings({}).transport == "vsock"
        with pytest.raises(UsageError, match=r"the configuration cannot be read: "):
            settings({CONFIG_VARIABLE: own})
    # the file itself is there, and closed to this user: its settings are not passed over in silence
    Path(own).parent.mkdir()
    Path(own).touch()
    files._settings.cache_clear()
    with pytest.raises(UsageError, match=r"the configuration cannot be read: "):
        settings({})


@needs_linux
def test_what_is_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    subprocess.run(["mkfifo", pipe], check=True)
    for path in (pipe, tmp_path):
        with pytest.raises(UsageError, match="a configuration is a file, and this is none"):
            settings({CONFIG_VARIABLE: str(path)})
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(UsageError, match=r"loop: the configuration cannot be read: "):
        settings({CONFIG_VARIABLE: str(loop)})
