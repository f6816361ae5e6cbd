"""The compose file of examples/containers, with Podman: a container that is a partition, and answers its host."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

import hvsock
from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from tests.vm.support import PATIENCE, guest_image
from tests.vm.test_cpio import read

COMPOSE: Final = Path(__file__).parents[2] / "examples" / "containers" / "compose.yaml"
IMAGE: Final = "localhost/hvsock"
USERLAND, REQUIREMENTS, OWN = 0, 2, 3
"""Those of the default guest's layers that make an image: all but the kernel's modules."""
COMPOSE_COMMAND: Final = os.path.join(os.path.dirname(sys.executable), "podman-compose")
"""PyPI's, of the tests' own environment: 1.0, which Debian 12 has, mixes network_mode up with networks."""


def missing() -> str | None:
    """Why no container of Podman's can run here; None where one can."""
    if os.geteuid() != 0:
        return "containers are made as root here: run the tests as root"
    if shutil.which("podman") is None:
        return "there is no podman: apt-get install -y --no-install-recommends podman"
    return None


pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

IN_PRIVATE: Final = "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "
"""For crun, which takes no machine with cgroups of both versions; in a mount namespace, so nobody else sees it."""


def as_tar(path: Path) -> None:
    """Write the default guest, without a kernel, as the one layer of an image."""
    layers = guest_image().layers
    found = {}
    for number in (USERLAND, REQUIREMENTS, OWN):
        found.update(read(Path(layers[number].path).read_bytes()))
    kinds = {0o040000: tarfile.DIRTYPE, 0o120000: tarfile.SYMTYPE, 0o100000: tarfile.REGTYPE}
    with tarfile.open(path, "w") as tar:
        for entry in found.values():
            kind = kinds.get(entry.mode & 0o170000)
            if kind is None:  # devices, which a container gets from its engine
                continue
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode = kind, entry.mode & 0o7777
            if kind == tarfile.SYMTYPE:
                info.linkname = entry.data.decode()
            elif kind == tarfile.REGTYPE:
                info.size = len(entry.data)
            tar.addfile(info, io.BytesIO(entry.data))


def settings(folder: Path) -> dict[str, str]:
    """An environment in which Podman keeps everything in `folder`, and raises no limit: not every root may."""
    storage, containers = folder / "storage.conf", folder / "containers.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n')
    containers.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\n'
    )
    return {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(containers)}


def test_compose(hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    hvsock_fabric.register("Echo")
    web = hvsock_fabric.create_partition("web", "container")
    folder, project = tmp_path / "podman", tmp_path / "web"
    folder.mkdir()
    project.mkdir()
    shutil.copy(COMPOSE, project)
    as_tar(tmp_path / "image.tar")
    chosen = {"WEB_IMAGE": IMAGE, "WEB_VMID": str(web.id), "HVSOCK_DIR": hvsock_fabric.folder}
    environ = {**os.environ, **settings(folder), **chosen}

    def run(*command: str) -> str:
        script = ["unshare", "--mount", "sh", "-c", IN_PRIVATE + '"$@"', "sh", *command]
        done = subprocess.run(script, env=environ, cwd=project, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    try:
        run("podman", "import", "--change", "ENV PATH=/usr/bin:/bin", str(tmp_path / "image.tar"), IMAGE)
        run(COMPOSE_COMMAND, "up", "--detach")
        try:
            with hvsock.create_connection(("web", "Echo"), PATIENCE, retry=True) as sock:
                sock.sendall(b"hello")
                assert sock.recv(9) == b"hello"
            (found,) = json.loads(run("podman", "inspect", "web_web_1"))
            assert found["HostConfig"]["NetworkMode"] == "none"
            (mount,) = found["Mounts"]
            assert (mount["Source"], mount["RW"]) == (web.folder, False)
        finally:
            said = run(COMPOSE_COMMAND, "down", "--timeout", "60")
        assert "SIGKILL" not in said  # it heeds the signal that the file says
    finally:
        shutil.rmtree(folder)
