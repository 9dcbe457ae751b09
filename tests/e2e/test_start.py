"""A server that cannot start says why in one line and exits with 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import ROOT
from tests.support.server import clean_environment


def start(*arguments: str) -> tuple[int, str]:
    """Exit code and last line of stderr of ``divserve serve``."""
    command = [sys.executable, "-m", "divserve", "serve", *arguments]
    server = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    return server.returncode, server.stderr.strip().splitlines()[-1]


def test_port_in_use(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = start(str(tiny), "--port", str(port))
    assert (code, line) == (
        2,
        f"divserve: cannot listen on 127.0.0.1:{port}: Address already in use",
    )


@pytest.mark.long
def test_no_such_model(tmp_path: Path) -> None:
    code, line = start(str(tmp_path / "nothing"))
    assert code == 2
    assert line.startswith("divserve: vLLM refuses the configuration")


@pytest.mark.long
def test_unsupported_mode(tiny: Path) -> None:
    code, line = start(str(tiny), "--max-num-seqs", "1")
    assert code == 2
    assert line == (
        "divserve: not supported by divserve: "
        "--max-num-seqs below 2 (a guided request has at least two rows)"
    )


@pytest.mark.long
def test_mode_that_vllm_refuses(tiny: Path) -> None:
    code, line = start(str(tiny), "--max-model-len", "100000")
    assert code == 2
    assert line.startswith("divserve: vLLM refuses the configuration: ")
    assert "max_model_len" in line
