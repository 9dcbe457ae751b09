"""The engine is killed: every client gets an error, and the server ends. Runs last."""

from __future__ import annotations

import signal

from tests.support.losses import assert_all_are_told
from tests.support.server import Started

TOLD_WITHIN_S = 30
"""The death of a process is noticed at once; the rest is a margin for a busy machine."""


def test_all_are_told_and_the_server_ends(smollm2_server: Started) -> None:
    url, process = smollm2_server.url, smollm2_server.process
    assert_all_are_told(url, process, signal.SIGKILL, within_s=TOLD_WITHIN_S)
