"""A log as lines of a command."""

from __future__ import annotations

import logging

from .outcome import say


class LogLines(logging.Handler):
    """Writes a log to standard error, as everything that a command says."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        say(f"{level}{record.getMessage()}")
