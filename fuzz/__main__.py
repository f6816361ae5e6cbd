"""The coverage-guided fuzzer: ``python -m fuzz device|session [libFuzzer's options and folders]``.

It takes atheris; what it finds, it writes into a file. ``python -m fuzz play device FILES`` plays files again, and
``python -m fuzz keep device FOLDERS`` puts what is needed of these folders into the corpus.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from typing import Any

USAGE = "usage: python -m fuzz [play|keep] device|session [libFuzzer's options and folders; files; folders]"
CORPUS = Path(__file__).parent / "corpus"


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz until an exception, or as long as the options say."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("the guided fuzzer is missing: run  pip install atheris  and try again")
    with atheris.instrument_imports(include=["hvsock.virtio"]):
        from fuzz.programs import play
    atheris.Setup([f"fuzz {name}", *arguments], lambda data: play(name, data))
    atheris.Fuzz()


def replay(name: str, files: list[str]) -> None:
    """Play programs from files."""
    from fuzz.programs import play

    for file in files:
        play(name, Path(file).read_bytes())


def keep(name: str, folders: list[str]) -> None:
    """Make the corpus anew, of itself and of these folders."""
    from fuzz.minimise import minimise

    corpus = CORPUS / name
    old = [file.read_bytes() for folder in [corpus, *map(Path, folders)] for file in folder.iterdir()]
    for file in corpus.iterdir():
        file.unlink()
    for program in minimise(name, old):
        (corpus / hashlib.sha256(program).hexdigest()[:16]).write_bytes(program)


def main(arguments: list[str]) -> None:
    """The command line."""
    commands = {"play": replay, "keep": keep}
    command = commands.get(arguments[0], fuzz) if arguments else fuzz
    rest = arguments if command is fuzz else arguments[1:]
    if not rest or rest[0] not in ("device", "session"):
        sys.exit(USAGE)
    command(rest[0], rest[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
