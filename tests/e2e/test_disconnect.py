"""Clients that leave: their requests end, and the memory is freed."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from tests.support.chat import guided
from tests.support.metrics import Changes, scraped
from tests.support.server import GAUGES, gauges, hang_up

CLIENTS = 200
AT_ONCE = 16
LONGEST_VISIT_S = 1.0
GRACE_S = 20


def test_nothing_is_left_of_clients_that_leave_at_any_instant(server: str) -> None:
    changes = Changes(lambda: scraped(server))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda seed: visit(server, random.Random(seed)), range(CLIENTS)))

    deadline = time.monotonic() + GRACE_S
    while any((left := gauges(server)).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == dict.fromkeys(GAUGES, 0.0)
    # A server that had rejected them would have nothing left either.
    assert changes.of("requests_total", method="cad", outcome="aborted") > CLIENTS / 2
    assert changes.of("requests_total", method="cad", outcome="client_error") == 0


def visit(server: str, rng: random.Random) -> None:
    """Sends a long guided request and hangs up after a while."""
    body = {
        "prompt": "Document. " * rng.randrange(1, 100) + "Tell a story.",
        "decoding": guided(trace=rng.random() < 0.5) | {"guide": {"without": "Document. "}},
        "stream": rng.random() < 0.5,
        "n": rng.randrange(1, 3),
        "max_tokens": 300,
        "ignore_eos": True,
    }
    hang_up(server, body, rng.random() * LONGEST_VISIT_S)
