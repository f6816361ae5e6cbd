"""A host in Go, made from the published .proto files, asks a guest for its heartbeat."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

import hvsock.services
from hvsock.fabric import paths
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.heartbeat.applications import ApplicationState, telling
from hvsock.services.predefined.heartbeat.protocol import Heartbeat
from hvsock.services.proto import FOLDER
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric
from hvsock.vm.layers import images_folder, key_of
from tests.cli.helpers import PROGRAM

SOURCES: Final = Path(__file__).parent / "go"
PROTOS: Final = Path(hvsock.services.__file__).parent / FOLDER
MODULE: Final = "hvsock.test/heartbeat"
SCHEMAS: Final = ("heartbeat", "negotiation")
BUILD_SECONDS: Final = 600
"""How long a first build may take, with what it fetches; it is kept."""
PLUGINS: Final = ("google.golang.org/protobuf/cmd/protoc-gen-go", "google.golang.org/grpc/cmd/protoc-gen-go-grpc")


def client_in_go() -> Path:
    """The program, built unless it is there; skips where it cannot be."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed; as root: apt-get install -y golang, or see https://go.dev/dl")
    texts = [path.read_text() for path in sorted(SOURCES.iterdir())]
    texts += [(PROTOS / f"{name}.proto").read_text() for name in SCHEMAS]
    cache = Path(images_folder()).parent / "programs"
    kept = cache / f"heartbeat-{key_of(texts)}"
    if not kept.exists():
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        work = cache / f"new-heartbeat-{os.getpid()}"
        shutil.copytree(SOURCES, work)
        try:
            _run(work, "go", "build", "-o", f"{work}/", *PLUGINS)
            _run(work, *_protoc(work))
            _run(work, "go", "build", "-trimpath", "-o", "client", ".")
            os.replace(work / "client", kept)
        finally:
            shutil.rmtree(work)
    return kept


def _protoc(work: Path) -> list[str]:
    """The command that makes Go of the published files."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    for kind in ("go", "go-grpc"):
        command += [f"--plugin={work}/protoc-gen-{kind}", f"--{kind}_out=.", f"--{kind}_opt=module={MODULE}"]
        command += [f"--{kind}_opt=M{name}.proto={MODULE}/pb/{name}" for name in SCHEMAS]
    return [*command, *(f"{name}.proto" for name in SCHEMAS)]


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    if done.returncode:
        text = done.stderr[-300:]
        if "dial tcp" in text or "disabled by GOPROXY" in text:
            pytest.skip(f"Go's modules are not there and cannot be fetched; set GOPROXY: {text}")
        raise AssertionError(done.stderr)


@pytest.mark.timeout(2 * BUILD_SECONDS)
def test_a_host_in_go(tmp_path: Path) -> None:
    program = client_in_go()

    async def run(fabric_folder: str, folder: str) -> str:
        async with serve(
            Heartbeat(Surroundings(own_machine=False, state_folder=str(tmp_path))), bind="parent", partition=folder
        ):
            process = await asyncio.create_subprocess_exec(
                *(PROGRAM, "connect", "web01", "Heartbeat", "--exec", str(program)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, paths.FOLDER_VARIABLE: fabric_folder},
            )
            _, said = await process.communicate()
            assert process.returncode == 0, said
            return said.decode()

    with fabric() as made, telling("database", str(tmp_path), ApplicationState.CRITICAL):
        said = asyncio.run(run(made.folder, made.create_partition("web01").folder))
    assert said.splitlines() == [
        "version 2, ready true",
        "41 -> 42 APPLICATION_STATE_CRITICAL",
        "42 -> 43 APPLICATION_STATE_CRITICAL",
        "43 -> 44 APPLICATION_STATE_CRITICAL",
    ]
