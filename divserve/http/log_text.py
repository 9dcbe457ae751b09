"""What clients wrote, in logs: control characters are escaped, so that no line steers a terminal.

A name in a request may hold any character, and error messages of vLLM and others quote it.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["escape_records", "escaped"]

CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Everything but tabs that moves a cursor, colours text, or turns its direction."""

Factory = Callable[..., logging.LogRecord]


def escaped(text: str) -> str:
    """The text in one line, with control characters as in a Python string."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def escape_records() -> None:
    """Escapes all later log records of this process, of other packages too; once is enough.

    Records are changed rather than what is written, because formatters add colours of their own.
    """
    if not isinstance(made := logging.getLogRecordFactory(), EscapedRecords):
        logging.setLogRecordFactory(EscapedRecords(made))


class EscapedRecords:
    """A factory of log records.

    Args:
        made: the factory that it wraps.
    """

    def __init__(self, made: Factory) -> None:
        self._made = made

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._made(*args, **kwargs)
        # uvicorn quotes its paths, and its formatters read the arguments.
        if not record.name.startswith("uvicorn"):
            try:
                record.msg, record.args = _lines(record.getMessage()), ()
            except (TypeError, ValueError):
                # Arguments that do not fit: the handler reports it.
                return record
        if record.exc_info and record.exc_info[0] is not None:
            told = "".join(traceback.format_exception(*record.exc_info))
            record.exc_text = _lines(told.rstrip("\n"))
        return record


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.split("\n")))
