"""Figures known only to the engine's process reach the front end's metrics, each exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY, generate_latest
from vllm import SamplingParams

from divserve.decoding import METHODS, Stack
from divserve.engine.client.ledger import Ledger
from divserve.engine.reported import Report
from divserve.engine.worker.report import Timer
from tests.support.engine import Engine, order, report_of
from tests.support.metrics import Changes

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))
TOKENS = 6


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    engine = Engine(tiny, max_num_seqs=4)
    yield engine
    engine.close()


def params(method: str, guide: list[int] | None) -> SamplingParams:
    extra = order(method, guide)
    return SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False, extra_args=extra)


def reports(engine: Engine, requests: list[tuple[str, SamplingParams]]) -> list[Report]:
    """All reports that the scheduler sends while it serves the requests."""
    found: list[Report] = []
    update = engine.scheduler.update_from_output

    def watched(*args: Any) -> Any:
        outputs = update(*args)
        for step in outputs.values():
            found.extend(r for o in step.outputs if (r := report_of(o)) is not None)
        return outputs

    engine.scheduler.update_from_output = watched
    try:
        for name, sampling in requests:
            engine.core.add_request(name, {"prompt_token_ids": PROMPT}, sampling)
        while engine.core.has_unfinished_requests():
            engine.core.step()
    finally:
        del engine.scheduler.update_from_output
    assert set(engine.leftovers().values()) == {0}
    return found


def test_every_group_waits_once_and_every_step_is_timed_once(engine: Engine) -> None:
    """Six pairs with room for two: those in the queue wait while the first ones decode."""
    found = reports(engine, [(str(i), params("cad", GUIDE)) for i in range(6)])
    waits = sorted(report.wait_s for report in found if report.wait_s is not None)
    times = [report.kernel_s for report in found if report.kernel_s is not None]
    assert sum(len(report.statistics) for report in found) == 6 * TOKENS
    assert len(waits) == 6
    assert 0 <= waits[0] < waits[-1]
    assert waits[-1] > sum(times[: 2 * TOKENS]), "the last pair waited for two others to end"
    assert 3 * TOKENS <= len(times) < 6 * TOKENS, "one time per step, whatever its rows"
    assert all(0 < seconds < 1 for seconds in times)


def test_a_request_of_one_row_waits_for_nobody(engine: Engine) -> None:
    found = reports(engine, [("one", params("entropy_temperature", None))])
    assert not [report for report in found if report.wait_s is not None]
    assert len([report for report in found if report.kernel_s is not None]) == TOKENS


def test_the_front_end_counts_what_comes() -> None:
    """Also for a request whose client has left: its account is closed."""
    processor: Any = SimpleNamespace(add_request=None, process_outputs=lambda outputs: outputs)
    ledger = Ledger(processor)
    ledger.open(Stack(METHODS["entropy_temperature"](method="entropy_temperature")).spec(1.0, []))
    changes = Changes(lambda: generate_latest(REGISTRY).decode())
    for report in (
        Report(statistics=((0.0,),), wait_s=0.02, kernel_s=0.001),
        Report(statistics=((0.0,),)),
        Report(error="lost", broken="no_report", unguided=1),
        Report(error="lost", broken="member_ended"),
    ):
        output = SimpleNamespace(request_id="gone", kv_transfer_params=None)
        report.put_on(output)
        processor.process_outputs([output])
        assert output.kv_transfer_params is None
    assert changes.of("pair_wait_seconds_count") == 1
    assert changes.of("pair_wait_seconds_sum") == pytest.approx(0.02)
    assert changes.of("kernel_seconds_bucket", le="0.001") == 1
    assert changes.of("broken_pairs_total", reason="no_report") == 1
    assert changes.of("broken_pairs_total", reason="member_ended") == 1
    assert changes.of("unguided_steps_total") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_device_time_without_waiting() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        timer = Timer(device)
        matrix @ matrix
        timer.stop()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert 1e-5 < timer.seconds() < 1
