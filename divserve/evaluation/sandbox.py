"""Runs code that a model wrote, apart from everything else as far as this machine allows.

The code runs in a Python process of its own with no environment, an empty folder, limits on time,
memory, processes and file sizes, and, where ``unshare`` may make namespaces, without a network.
That keeps accidents small. It is no protection against a hostile model.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from functools import cache

__all__ = ["passes"]

SECONDS = 5
MEMORY = 1 << 30
LARGEST_FILE = 1 << 20


def passes(code: str, tests: str) -> bool:
    """Whether `tests`, run after `code`, reach their end without an error within 5 s."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*_apart(), sys.executable, "-I", "-c", f"{code}\n\n{tests}\nprint({ENDED!r})"],
                cwd=folder, env={}, timeout=SECONDS, preexec_fn=_limit, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, ValueError):
            # A null byte in the code is a ValueError.
            return False
    return done.returncode == 0 and done.stdout.endswith(f"{ENDED}\n")


ENDED = "divserve: the tests have passed"
"""Printed last, so that code which leaves early does not pass."""


@cache
def _apart() -> tuple[str, ...]:
    """The command that begins a process without a network, or nothing where that is refused."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--net", "--map-root-user")
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
