"""Compiles Triton kernels in processes of their own, all at once, before they are needed.

Triton keeps Python's lock for much of a compilation: with 3.6 threads gain little
(`bench.first_start`), and they would hold up the loading of the model. One process imports what is
needed, then forks for each variant; it has no threads and no GPU, unlike the server. They compile
into Triton's cache, where the server finds the kernels. Triton renames finished files into it, the
one that makes a kernel valid last: a process that is ended leaves no half of one. What is missing
in the end, the server compiles itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import triton

import divserve_contract
from divserve_kernels.triton_launch import Gpu, compiling_for

__all__ = ["Ahead", "Job"]

LIMIT = 600.0
"""Seconds until all must be compiled; one takes about ten."""


@dataclass(frozen=True, slots=True)
class Job:
    """One variant: ``module.compile_variant(**options)`` makes the launches that need it."""

    module: str
    options: dict[str, Any]
    """Values that JSON knows."""

    def run(self, gpu: Gpu) -> None:
        """Compiles it in this process, and leaves a mark that this machine has it."""
        with compiling_for(gpu):
            importlib.import_module(self.module).compile_variant(**self.options)
        self.mark(gpu).touch()

    def mark(self, gpu: Gpu) -> Path:
        """The file in Triton's cache that says that the variant is in it."""
        # Triton's settings may change what is compiled, apart from these.
        settings = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("TRITON_", "DIVSERVE_TRITON"))
            and not name.startswith(("TRITON_CACHE_", "TRITON_PRINT_"))
        }
        parts = (asdict(self), asdict(gpu), triton.__version__, settings, _sources())
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
        return _folder() / f"divserve-{digest}"


class Ahead:
    """Variants that are being compiled since this was made.

    Processes that use the same cache take turns: ranks, or servers that start together, wait for
    the first of them and find its kernels.
    """

    def __init__(self, jobs: Sequence[Job], gpu: Gpu) -> None:
        self._start = time.perf_counter()
        self._jobs, self._gpu = jobs, gpu
        self._lock: TextIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.missing = len(self._unmarked())
        """How many variants this machine did not have."""
        if self.missing:
            # Without a cache that can be written to, each process must compile for itself.
            with suppress(OSError):
                _folder().mkdir(parents=True, exist_ok=True)
                self._lock = (_folder() / "divserve.lock").open("w")
                self._begin()

    def _unmarked(self) -> list[Job]:
        missing = {job.mark(self._gpu): job for job in self._jobs}
        return [job for mark, job in missing.items() if not mark.exists()]

    def _begin(self) -> bool:
        """Starts to compile what is missing, unless another process is at it."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
        except BlockingIOError:
            return False
        if jobs := self._unmarked():
            self._process = _start(jobs, self._gpu)
        return True

    def wait(self) -> float:
        """Waits until they are compiled or have failed; returns the seconds that it has waited."""
        if self._lock is None:
            return 0.0
        start, end = time.perf_counter(), self._start + LIMIT
        with suppress(OSError), self._lock:
            while self._process is None and not self._begin() and time.perf_counter() < end:
                time.sleep(0.05)
            if self._process is not None:
                try:
                    self._process.wait(max(0.0, end - time.perf_counter()))
                except subprocess.TimeoutExpired:
                    os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait()
            # A fork of this process may hold the file too.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock = None
        return time.perf_counter() - start


def _start(jobs: Sequence[Job], gpu: Gpu) -> subprocess.Popen[bytes]:
    """A process that runs all jobs at once. What fails there fails here too, and is reported."""
    code = "from divserve_kernels import ahead; ahead.main()"
    work = json.dumps([[asdict(job) for job in jobs], asdict(gpu)])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, work],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )


def main() -> None:
    """What that process does: as many jobs at a time as there are cores."""
    jobs, gpu = json.loads(sys.argv[1])
    cores = len(os.sched_getaffinity(0))
    for job in jobs:
        importlib.import_module(job["module"])
    for place, job in enumerate(jobs):
        if place >= cores:
            os.wait()
        if os.fork() == 0:
            try:
                Job(**job).run(Gpu(**gpu))
            finally:
                os._exit(0)
    for _ in jobs[-cores:]:
        os.wait()


def _folder() -> Path:
    return Path(triton.knobs.cache.dir)


def _sources() -> str:
    """Checksum of all that the kernels are made from."""
    folder = Path(__file__).parent
    shared = [Path(divserve_contract.__file__), folder / "layout.py"]
    sources = [*shared, *sorted(folder.glob("*triton*.py"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
