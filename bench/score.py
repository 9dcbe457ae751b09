"""What reading a text costs: scores against plain prefill and vLLM's log-probs of the prompt.

One engine; each round runs the same number of texts in turn, all new to the prefix cache,

    prefill              plain requests for one token
    score                every token but the first is scored
    pair                 the same behind two prompts of one token, with pmi, kl and jsd
    prompt_logprobs k    vLLM's log-probs of the prompt, k likeliest tokens each

``score / prefill`` is the ratio of prompt tokens per second within a round.

    python -m bench.score                       # SmolLM2, about 4 minutes
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from vllm import SamplingParams

from bench.rounds import Figures, keep, rotated, summary
from divserve.decoding import Reading
from loadtest import record
from tests.support.engine import Engine, random_prompt
from tests.support.models import SMOLLM2
from tests.support.scored import scored

VOCAB = 49_152
TARGETS = {"score / prefill": 0.8}

Request = tuple[list[int], Any]


def plain(prompt: list[int]) -> Request:
    """One token behind the prompt."""
    return prompt, SamplingParams(temperature=0, max_tokens=1, detokenize=False)


def read(prompt: list[int]) -> Request:
    """Every token but the first is scored."""
    return prompt, scored(Reading(len(prompt) - 1))


def pair(prompt: list[int]) -> Request:
    """The same behind another first token, too."""
    return prompt, scored(Reading(len(prompt) - 1), [[7, *prompt[1:]]])


def vllms(count: int) -> Callable[[list[int]], Request]:
    """Requests for vLLM's log-probs of the prompt."""

    def made(prompt: list[int]) -> Request:
        params = SamplingParams(
            temperature=0, max_tokens=1, prompt_logprobs=count, detokenize=False
        )
        return prompt, params

    return made


SIDES: dict[str, Callable[[list[int]], Request]] = {
    "prefill": plain,
    "score": read,
    "pair": pair,
    "prompt_logprobs 0": vllms(0),
    "prompt_logprobs 20": vllms(20),
}


def rate(engine: Engine, side: str, texts: int, tokens: int, rng: random.Random) -> float:
    """Tokens of texts per second; a pair reads each twice."""
    prompts = [random_prompt(rng, tokens, VOCAB) for _ in range(texts)]
    begun = time.perf_counter()
    engine.generate([SIDES[side](prompt) for prompt in prompts])
    return texts * tokens / (time.perf_counter() - begun)


def main(
    texts: Annotated[int, typer.Option(help="Texts at once.")] = 4,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 5,
    save: Annotated[bool, typer.Option("--record", help="Append to bench/results.csv.")] = False,
) -> None:
    """Print the table."""
    before, figures, rng = os.getloadavg()[0], Figures(), random.Random(0)
    engine = Engine(SMOLLM2, max_num_batched_tokens=1024, max_logprobs=20)
    with Progress() as progress:
        for number in progress.track(range(rounds + 1)):
            found = {}
            for side in rotated([*SIDES], number):
                found[side] = rate(engine, side, texts, tokens, rng)
            ratios = {f"{side} / prefill": found[side] / found["prefill"] for side in SIDES}
            ratios["score / prompt_logprobs 0"] = found["score"] / found["prompt_logprobs 0"]
            ratios["score / prompt_logprobs 20"] = found["score"] / found["prompt_logprobs 20"]
            ratios["prefill, tokens per second"] = found["prefill"]
            del ratios["prefill / prefill"]
            keep(figures, ratios, number)
    engine.close()
    case = f"smollm2, {texts} texts of {tokens} tokens, load {before:.1f}"
    table, lines = Table("metric", "value", "range", "target", title=case), []
    for name, values in figures.items():
        median, spread = summary(values, 3)
        table.add_row(name, median, spread, str(TARGETS.get(name, "")))
        lines.append({"case": case, "metric": name, "value": median, "spread": spread})
    Console().print(table)
    if save:
        record.append("score", record.asked("bench.score"), lines)


if __name__ == "__main__":
    typer.run(main)
