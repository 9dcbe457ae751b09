"""Ends a process that hangs, with a traceback of all its threads."""

from __future__ import annotations

import faulthandler
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from signal import SIGABRT

import psutil

from tests.support.models import ROOT

__all__ = ["bounded", "run"]

DUMP_S = 10
"""Seconds that a process gets to write its traceback."""


@contextmanager
def bounded(seconds: float, output: int) -> Iterator[None]:
    """Exits this process with status 1 if the block takes longer, even where a call into C hangs.

    Args:
        seconds: the limit.
        output: file descriptor for the traceback.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=output)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def run(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> str:
    """The standard output of a program that runs in the project's folder.

    Raises:
        RuntimeError: it failed or took longer than the limit; the message ends with its standard
            error, which then says where a Python program was.
    """
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        errors = _ended(child)
        raise RuntimeError(f"no end within {limit_s} s:\n{errors[-6000:]}") from None
    if child.returncode:
        raise RuntimeError(f"exit status {child.returncode}:\n{errors[-6000:]}")
    return output


def _ended(child: subprocess.Popen[str]) -> str:
    """Ends a process and those that it started; its standard error."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    child.send_signal(SIGABRT)
    try:
        _, errors = child.communicate(timeout=DUMP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        _, errors = child.communicate()
    return errors
