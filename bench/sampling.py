"""What it saves to leave guide rows out of sampling: time of a sampler's step, all rows ÷ without.

N pairs and P plain requests are 2N + P rows, of which N are guides. One side gives all rows to
vLLM's sampler (that of Model Runner V1, on this machine's device); the other copies the rows that
are no guides, gives these, and puts the tokens back (`divserve.engine.worker.sampled_rows`). Sides
take turns in one run. Where the ratio is not above 1 the worker leaves all rows to vLLM.

    python -m bench.sampling             # two minutes
    python -m bench.sampling --record    # appends to bench/results.csv
    python -m bench.sampling --pairs 2 --pairs 8 --plain 24    # among plain requests
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.rounds import Figures, keep, rotated, summary
from bench.sizes import ON_GPU, synchronize
from divserve.engine.worker.guide_tokens import LEAST_SHARE
from divserve.engine.worker.sampled_rows import (
    SampledRows,
    metadata_of,
    of_all_rows,
    worth_it_v1,
)
from divserve.engine.worker.staging import Staging
from loadtest import record

DEVICE = torch.device("cuda" if ON_GPU else "cpu")
KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 1": {"temperature": 1},
    "top-p 0.9": {"temperature": 1, "top_p": 0.9},
    "penalties, greedy": {"temperature": 0, "penalty": 0.5},
    "logprobs, greedy": {"temperature": 0, "logprobs": 5},
}


def metadata(rows: int, vocab: int, kind: dict[str, float]) -> Any:
    """vLLM's ``SamplingMetadata`` of requests that all ask for the same."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    def column(value: float) -> Tensor:
        return torch.full((rows,), value, device=DEVICE)

    random, penalty = kind["temperature"] > 0, kind.get("penalty", 0.0)
    logprobs = kind.get("logprobs")
    return SamplingMetadata(
        temperature=column(kind["temperature"]) if random else None,
        all_greedy=not random,
        all_random=random,
        top_p=column(kind["top_p"]) if "top_p" in kind else None,
        top_k=None,
        generators={},
        max_num_logprobs=None if logprobs is None else int(logprobs),
        no_penalties=not penalty,
        prompt_token_ids=torch.randint(0, vocab, (rows, 64), device=DEVICE),
        frequency_penalties=column(penalty),
        presence_penalties=column(0.0),
        repetition_penalties=column(1.0),
        output_token_ids=[list(range(48)) for _ in range(rows)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )


def sides(
    pairs: int, plain: int, vocab: int, kind: dict[str, float]
) -> dict[str, Callable[[Tensor], Any]]:
    """The two ways, as functions of logits ``[R, vocab] float32``, which they overwrite."""
    from vllm.v1.sample.sampler import Sampler

    rows, sampler, staging = 2 * pairs + plain, Sampler(), Staging(DEVICE)
    given, primaries = metadata(rows, vocab, kind), np.arange(0, 2 * pairs, 2)
    kept = SampledRows.without(primaries + 1, primaries, rows, staging)
    staging.send()
    some = metadata_of(given, kept)

    def without_guides(logits: Tensor) -> Any:
        return of_all_rows(sampler(logits.index_select(0, kept.rows), some), kept)

    return {"all": lambda logits: sampler(logits, given), "without": without_guides}


def seconds(call: Callable[[Tensor], Any], logits: Tensor) -> float:
    """Time of a call on a copy of the logits, until the device has done it."""
    own = logits.clone()
    synchronize()
    start = time.perf_counter()
    call(own)
    synchronize()
    return time.perf_counter() - start


def main(
    pairs: Annotated[list[int], typer.Option(help="Guided requests at once.")] = [8, 32, 64],  # noqa: B006
    plain: Annotated[int, typer.Option(help="Plain requests beside them.")] = 0,
    vocab: Annotated[list[int], typer.Option(help="Vocabulary.")] = [49_152, 151_936],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    save: Annotated[bool, typer.Option("--record", help="Append to bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    table = Table("pairs", "V", "sampling", "all rows, µs", "÷ without guides", "range", "left out")
    saved = []
    cases = [(kind, size, count) for kind in KINDS for size in vocab for count in pairs]
    for kind, size, count in track(cases, console=Console(stderr=True)):
        calls, figures = sides(count, plain, size, KINDS[kind]), Figures()
        logits = torch.randn(2 * count + plain, size, device=DEVICE) * 3
        enough = count >= LEAST_SHARE * (2 * count + plain)
        left_out = enough and worth_it_v1(metadata(2, size, KINDS[kind]))
        for number in range(rounds + 1):
            took = {name: seconds(calls[name], logits) for name in rotated(list(calls), number)}
            found = {"all": 1e6 * took["all"], "ratio": took["all"] / took["without"]}
            keep(figures, found, number)
        ratio, spread = summary(figures["ratio"], 2)
        micros, _ = summary(figures["all"], 0)
        table.add_row(str(count), f"{size:,}", kind, micros, ratio, spread, str(left_out))
        beside = f" and {plain} plain" if plain else ""
        case = f"{count} pairs{beside}, V={size}, {kind}"
        metric = "sampling all rows / without guides"
        saved.append({"case": case, "metric": metric, "value": ratio, "spread": spread})
        saved.append({"case": case, "metric": "all rows, µs", "value": micros, "spread": ""})
    Console(width=110).print(table)
    if save:
        record.append("sampling", record.asked("bench.sampling"), saved)


if __name__ == "__main__":
    typer.run(main)
