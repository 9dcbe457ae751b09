"""Entropy-adaptive switching on a question set: time, tokens by model, and quality of the answers.

Requests run one at a time, greedily, through the front end's client. The large and the small model
alone give each model's time per token (the mean time between tokens) and the time to read a prompt;
a switching run is compared with what its own tokens would cost at these times. Quality is the share
of questions whose answer contains a right word, and the length of the prefix shared with the large
model's answer.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tests.support.models import ROOT
from tests.support.two_engines import Pair, switching, two_engines

__all__ = ["THRESHOLDS", "measure"]

QUESTIONS = ROOT / "tests" / "data" / "questions.jsonl"
THRESHOLDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Thresholds in bits."""
ALONE = ("large alone", "small alone")


@dataclass
class Answered:
    """One answer and its times."""

    text: str
    tokens: list[int]
    models: list[str]
    times: list[float]
    """Seconds from the request to each of its tokens."""

    @property
    def switches(self) -> int:
        return sum(a != b for a, b in pairwise(self.models))

    @property
    def seconds(self) -> float:
        return self.times[-1]


async def answer(pair: Pair, prompt: list[int], spec: Any, tokens: int, number: int) -> Answered:
    """Asks one question and records when each token arrives."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        output_kind=RequestOutputKind.DELTA,
        extra_args={"divserve": spec} if spec is not None else None,
    )
    inputs = {"type": "token", "prompt_token_ids": prompt}
    found = Answered("", [], [], [])
    start = time.perf_counter()
    async for output in pair.client.generate(inputs, params, f"q{number}"):
        (choice,) = output.outputs
        found.times += [time.perf_counter() - start] * len(choice.token_ids)
        found.tokens += choice.token_ids
        found.text += choice.text
        found.models += getattr(choice, "models", [])
    return found


def sides() -> dict[str, Any]:
    """The order of each side, by its name; a side of one model alone never moves."""
    from divserve.engine.order import OnSmall

    found: dict[str, Any] = {"large alone": None, "small alone": OnSmall(None)}
    return found | {f"threshold {t}": switching(threshold=t) for t in THRESHOLDS}


def measure(
    large: Path, small: Path, label: str, tokens: int, progress: Progress
) -> list[dict[str, str]]:
    """All figures of a pair, one per line."""
    questions = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    options: dict[str, Any] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 1024,
        "max_model_len": 1024,
    }
    found: dict[str, list[Answered]] = {}
    with two_engines(large, small, **options) as pair:
        prompts = [_rendered(pair, q["question"]) for q in questions]
        asked = sides()
        names = list(asked)
        task = progress.add_task(f"switching, {label}", total=len(asked) * len(prompts))
        number = 0
        for i, prompt in enumerate([prompts[0], *prompts]):
            # The sides take turns for each question, so that all see the same machine, and not
            # always in the same order; the first question is a warm-up. The prefix caches are
            # emptied; otherwise the later sides would read nothing.
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                pair.run(_forget(pair))
                number += 1
                one = pair.run(answer(pair, prompt, asked[name], tokens, number))
                if i > 0:
                    found.setdefault(name, []).append(one)
                    progress.advance(task)
        ratio = pair.client.compute_ratio
    case = f"smollm2 and {label}, {len(questions)} questions, {tokens} tokens at most"
    return _figures(case, found, questions, ratio)


async def _forget(pair: Pair) -> None:
    await pair.client.inner.reset_prefix_cache()
    await pair.client.small.inner.reset_prefix_cache()


def _rendered(pair: Pair, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    tokenizer = pair.client.renderer.tokenizer
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )


def _figures(
    case: str, found: dict[str, list[Answered]], questions: list[Any], ratio: float
) -> list[dict[str, str]]:
    per_token = {name: _between_tokens(found[name]) for name in ALONE}
    first = {name: [a.times[0] for a in found[name]] for name in ALONE}
    lines = []

    def note(metric: str, values: Sequence[float], digits: int = 3) -> None:
        value = f"{statistics.mean(values):.{digits}f}"
        spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
        lines.append({"case": case, "metric": metric, "value": value, "spread": spread})

    for name, answers in found.items():
        asked = zip(answers, questions, strict=True)
        note(f"{name}: accuracy", [_is_right(a.text, q["answers"]) for a, q in asked])
        note(f"{name}: seconds an answer", [a.seconds for a in answers])
        note(f"{name}: tokens/s", [len(a.tokens) / a.seconds for a in answers], 1)
        whole = zip(answers, found["large alone"], strict=True)
        note(f"{name}: prefix shared with the large model", [_shared(a, b) for a, b in whole])
        if name in ALONE:
            continue
        large = [a.models.count("large") / len(a.models) for a in answers]
        note(f"{name}: share of large tokens", large)
        note(f"{name}: compute saved", [(1 - share) * (1 - ratio) for share in large])
        note(f"{name}: switches an answer", [a.switches for a in answers], 1)
        took = sum(a.seconds for a in answers)
        own = [_own_cost(a, i, per_token, first) for i, a in enumerate(answers)]
        note(f"seam, {name}: time / its tokens' on their own models", [took / sum(map(sum, own))])
        strict = [decoding for decoding, _ in own]
        note(f"strict seam, {name}: the second model's prompt not counted", [took / sum(strict)])
    return lines


def _is_right(text: str, words: Sequence[str]) -> bool:
    return any(word.lower() in text.lower() for word in words)


def _between_tokens(answers: list[Answered]) -> float:
    """Mean seconds between two tokens."""
    gaps = [b - a for one in answers for a, b in pairwise(one.times)]
    return statistics.mean(gaps)


def _own_cost(
    one: Answered, index: int, per_token: dict[str, float], first: dict[str, list[float]]
) -> tuple[float, float]:
    """What the tokens of an answer would cost if each model decoded alone, in two parts.

    In the first part, the first token costs what the starting model takes to read the prompt; the
    second part is the time the other model takes to read the prompt, if it ever had a turn. Reading
    each other's text is not included: it is a cost of switching.
    """
    begin, *rest = (f"{model} alone" for model in one.models)
    others = set(rest) - {begin}
    decoding = first[begin][index] + sum(per_token[model] for model in rest)
    return decoding, sum(first[other][index] for other in others)


def _shared(one: Answered, other: Answered) -> float:
    """Tokens of the common prefix, as a share of the longer answer."""
    same = 0
    for a, b in zip(one.tokens, other.tokens, strict=False):
        if a != b:
            break
        same += 1
    return same / max(len(one.tokens), len(other.tokens))
