"""A signal while the server starts: the first one ends all of its processes, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.models import ROOT
from tests.support.platform import server_flags
from tests.support.server import START_TIMEOUT_S, clean_environment, free_port

LEAVES_WITHIN_S = 10.0
"""On a machine that may be busy; a second is usual."""
DRAINED_WITHIN_S = 40.0
"""An idle server stops its engine before it leaves."""


class Start:
    """A server that is starting, in a session of its own, by which its processes are found."""

    def __init__(self, model: Path, log: Path, flags: Sequence[str] = ()) -> None:
        self.log = log
        command = [sys.executable, "-m", "divserve", "serve", str(model), *server_flags(), *flags]
        variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "INFO"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--max-model-len", "256", "--port", str(free_port())],
                cwd=ROOT,
                env=clean_environment() | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def await_(self, moment: Callable[[Start], bool]) -> None:
        """Waits for a moment of the start-up."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not moment(self):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """All processes of its session but itself."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.process.pid and os.getsid(process.pid) == self.process.pid:
                    found.append(process)
            except ProcessLookupError:
                continue
        return found

    def kill(self) -> None:
        """Leaves nothing behind, whatever the test has found."""
        for process in [self.process, *self.processes()]:
            process.kill()
        self.process.wait()


def says(text: str) -> Callable[[Start], bool]:
    """The moment at which the log has a text."""
    return lambda start: text in start.log.read_text()


def imports(start: Start) -> bool:
    """vLLM is being imported."""
    maps = Path(f"/proc/{start.process.pid}/maps").read_text()
    return "libtorch" in maps


def waits_for_the_engine(start: Start) -> bool:
    """The engine's process has begun, and the server is about to wait for it."""
    return any("spawn_main" in " ".join(_command(each)) for each in start.processes())


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def assert_it_leaves(start: Start, number: signal.Signals) -> None:
    start.process.send_signal(number)
    assert start.process.wait(LEAVES_WITHIN_S) == 128 + number
    assert_nothing_is_left(start)
    assert f"divserve: {number.name} during start-up: leaving at once" in start.log.read_text()


def assert_nothing_is_left(start: Start, but_of: str | None = None) -> None:
    """No process, and no traceback in the log but one of this file's lines."""
    deadline = time.monotonic() + LEAVES_WITHIN_S
    while left := start.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    told = [line for line in start.log.read_text().splitlines() if "Traceback" in line]
    assert [line for line in told if but_of is None or but_of not in line] == []


@pytest.mark.parametrize(
    ("moment", "then_s", "number"),
    [
        (imports, 0.0, signal.SIGINT),
        # Two seconds later it waits in vLLM, which swallowed the interrupt.
        (waits_for_the_engine, 2.0, signal.SIGTERM),
    ],
)
def test_the_first_signal_ends_a_start(
    tiny_with_tokenizer: Path,
    tmp_path: Path,
    moment: Callable[[Start], bool],
    then_s: float,
    number: signal.Signals,
) -> None:
    start = Start(tiny_with_tokenizer, tmp_path / "log.txt")
    try:
        start.await_(moment)
        time.sleep(then_s)
        assert_it_leaves(start, number)
    finally:
        start.kill()


MOMENTS = {
    "the engine is waited for": waits_for_the_engine,
    "the model is loaded": says("Starting to load model"),
    "warm-up": says("Loading weights took"),
}


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_any_moment(
    tiny_with_tokenizer: Path, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    start = Start(tiny_with_tokenizer, tmp_path / "log.txt")
    try:
        start.await_(MOMENTS[moment])
        assert_it_leaves(start, number)
    finally:
        start.kill()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_the_server_takes_the_signals(
    tiny_with_tokenizer: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """The signal meets the start or a server that drains: both end, each with its code."""
    start = Start(tiny_with_tokenizer, tmp_path / "log.txt")
    try:
        start.await_(says("its methods are listed at"))
        start.process.send_signal(number)
        assert start.process.wait(DRAINED_WITHIN_S) in (0, 128 + number)
        # vLLM's handler of outputs may meet an engine that has stopped before it is cancelled.
        assert_nothing_is_left(start, but_of="[async_llm.py:")
    finally:
        start.kill()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["the engine is waited for", "the model is loaded"])
def test_with_several_api_processes(tiny_with_tokenizer: Path, tmp_path: Path, moment: str) -> None:
    start = Start(tiny_with_tokenizer, tmp_path / "log.txt", ["--api-server-count", "2"])
    try:
        start.await_(MOMENTS[moment])
        assert_it_leaves(start, signal.SIGTERM)
    finally:
        start.kill()
