"""Runs code that a model wrote, apart from everything else as far as this machine allows.

The code runs in a Python process of its own with no environment, an empty folder, limits on time,
memory, processes and file sizes, and, where ``unshare`` may make namespaces, without a network.
That keeps accidents small. It is no protection against a hostile model.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from functools import cache

__all__ = ["passes"]

SECONDS = 5
MEMORY = 1 << 30
LARGEST_FILE = 1 << 20
ENDED = "divserve: the tests have passed"
"""Printed last, so that code which leaves early does not pass."""

RUNNER = f"""
import resource, sys
for kind, most in (
    (resource.RLIMIT_CPU, {SECONDS}),
    (resource.RLIMIT_AS, {MEMORY}),
    (resource.RLIMIT_FSIZE, {LARGEST_FILE}),
    (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (most, most))
exec(compile(sys.stdin.read(), "answer", "exec"), {{"__name__": "answer"}})
"""
"""Sets the limits within the process: a hook before its start may hang a program with threads."""


def passes(code: str, tests: str) -> bool:
    """Whether `tests`, run after `code`, reach their end without an error within 5 s."""
    whole = f"{code}\n\n{tests}\nprint({ENDED!r})"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*_apart(), sys.executable, "-I", "-c", RUNNER],
                input=whole, cwd=folder, env={}, timeout=SECONDS, text=True, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.endswith(f"{ENDED}\n")


@cache
def _apart() -> tuple[str, ...]:
    """The command that begins a process without a network, or nothing where that is refused."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--user", "--net", "--map-root-user")
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()
