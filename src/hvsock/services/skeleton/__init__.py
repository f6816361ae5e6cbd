"""A service to begin with: `hvsock service new` writes the files beside this module, with the service's own names.

They are templates of :class:`string.Template`, and work as they are written.
"""

from __future__ import annotations

import importlib.resources
import keyword
import os
import re
import sys
import uuid
from dataclasses import dataclass
from string import Template
from typing import Final

from hvsock.errors import DuplicateError, UsageError

MAX_NAME_CHARACTERS: Final = 24
"""Characters of a name that files and a class are named after; longer ones make lines that formatters break."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[ _-][A-Za-z0-9]+)*")
_TAKEN: Final = frozenset({"hvsock", "pytest", "host", "guest", "item", "query", "count", "service"})
_TEMPLATES: Final = {
    "service.py.txt": "$module.py",
    "guest.py.txt": "guest.py",
    "host.py.txt": "host.py",
    "test.py.txt": "test_$module.py",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What the parts of a new service are called.

    Attributes:
        name: its friendly name.
        module: its module.
        type_name: its class.
        id: its ServiceId.
    """

    name: str
    module: str
    type_name: str
    id: str

    @classmethod
    def of(cls, name: str) -> Names:
        """The names of the service called `name`, with a new GUID.

        Raises:
            UsageError: no module can be named after it.
        """
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
            raise UsageError(
                f"{name!r} cannot name a module and a class: up to {MAX_NAME_CHARACTERS} ASCII letters and "
                "digits, a letter first, with single spaces, - or _ between words"
            )
        words = re.split("[ _-]", name)
        module = "_".join(words).lower()
        type_name = "".join(word[0].upper() + word[1:] for word in words)
        reserved = keyword.iskeyword(module) or keyword.iskeyword(type_name)
        if reserved or module in sys.stdlib_module_names or module in _TAKEN:
            raise UsageError(f"{name!r} makes a module {module}, which is taken already: choose another name")
        return cls(name, module, type_name, str(uuid.uuid4()))


def files_of(names: Names) -> dict[str, str]:
    """The text of each file of a new service, by its name."""
    folder = importlib.resources.files(__name__)
    values = {
        "name": names.name,
        "module": names.module,
        "type_name": names.type_name,
        "id": names.id,
        "imported": ", ".join(sorted((names.type_name, "Query"), key=_import_order)),
    }
    return {
        Template(file).substitute(values): Template(folder.joinpath(source).read_text("utf-8")).substitute(values)
        for source, file in _TEMPLATES.items()
    }


def _import_order(name: str) -> tuple[bool, str]:
    """How linters sort what one line imports: constants, which are all in capitals, before classes."""
    return not (name.isupper() and len(name) > 1), name.lower()


def write(names: Names, folder: str) -> list[str]:
    """Write a new service, and say which files it has.

    Args:
        names: what its parts are called.
        folder: where; it is made if it is not there.

    Raises:
        DuplicateError: one of the files is there already; nothing was written.
        OSError: the folder or a file cannot be written.
    """
    files = {os.path.join(folder, file): text for file, text in files_of(names).items()}
    for path in files:
        if os.path.lexists(path):
            raise DuplicateError(f"{path} is there already and is left as it is: give another --folder")
    os.makedirs(folder, exist_ok=True)
    for path, text in files.items():
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    return list(files)
