"""Mixed batches of guided and plain requests, with the reference's answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from tests.support.engine import Engine, order, random_prompt, stacked
from tests.support.hf import Answer, Reference
from tests.support.models import TINY_VOCAB
from tests.support.platform import ON_GPU

METHOD_NAMES = ("cfg", "cad", "adacad", "kl_temperature", "coiecd", "instructive")
NEAR_TIE = 1e-2 if ON_GPU else 1e-3
"""If the gap between the two best logits is smaller, float32 rounding may pick either token. A GPU
adds in other orders and approximates the exponentials of attention."""
LOGPROB_ERROR = 1e-3 if ON_GPU else 1e-4
"""Error of a log-prob in float32, nats, between batches of other sizes; for the same reason."""


@dataclass
class Case:
    """One request; ``guide`` is None for a plain one."""

    prompt: list[int]
    guide: list[int] | None
    method: str
    max_tokens: int
    expected: Answer


def mixed_cases(
    reference: Reference, *, guided: int, plain: int, longest: int, seed: int
) -> list[Case]:
    """Random requests: block boundaries, one-token prompts, guides longer than primaries."""
    rng = random.Random(seed)
    cases = []
    for i in range(guided + plain):
        method = METHOD_NAMES[i % len(METHOD_NAMES)] if i < guided else ""
        prompt = random_prompt(
            rng, rng.choice([1, 2, 32, 33, 65, rng.randrange(3, longest)]), TINY_VOCAB
        )
        length = rng.choice([1, 1, 2, 32, 33, rng.randrange(3, longest)])
        related = prompt[-length:] if rng.random() < 0.5 else random_prompt(rng, length, TINY_VOCAB)
        guide = related if method else None
        tokens = rng.randrange(1, 40)
        expected = reference.greedy(prompt, guide, method, tokens)
        cases.append(Case(prompt, guide, method, tokens, expected))
    rng.shuffle(cases)
    return cases


def shared(expected: Answer, near_tie: float = NEAR_TIE, on_gpu: bool = ON_GPU) -> int:
    """How many tokens of an answer are the same in every batch.

    All on a CPU. A GPU adds in another order in another batch, which matters at a near-tie.
    """
    ties = (i for i, margin in enumerate(expected.margins) if on_gpu and margin < near_tie)
    return next(ties, len(expected.tokens))


def run(engine: Engine, cases: list[Case], **options: Any) -> list[list[int]]:
    """Runs all cases in one call, greedy; returns the tokens of each."""
    return [list(answer.token_ids) for answer in answers_of(engine, cases, **options)]


def answers_of(
    engine: Engine, cases: list[Case], logprobs: int | None = None, **options: Any
) -> list[Any]:
    """Runs all cases in one call, greedy; returns vLLM's completion of each."""
    from vllm import SamplingParams

    outputs = engine.generate(
        [
            (
                case.prompt,
                SamplingParams(
                    temperature=0,
                    max_tokens=case.max_tokens,
                    ignore_eos=True,
                    detokenize=False,
                    logprobs=logprobs,
                    extra_args=order_of(case),
                ),
            )
            for case in cases
        ],
        **options,
    )
    return [output.outputs[0] for output in outputs]


def order_of(case: Case) -> dict[str, Any] | None:
    """The order of a case for the engine; the guide of VDGD is its grounding text."""
    if case.method == "vdgd":
        return stacked([{"method": "vdgd", "grounding": "x"}], [None], grounding=case.guide)
    return order(case.method, case.guide) if case.method else None


def mismatches(cases: list[Case], answers: list[list[int]]) -> list[str]:
    """Where an answer deviates from the reference before the first near-tie of the reference."""
    found = []
    for i, (case, tokens) in enumerate(zip(cases, answers, strict=True)):
        expected = case.expected
        ties = [k for k, margin in enumerate(expected.margins) if margin < NEAR_TIE]
        sure = ties[0] if ties else len(expected.tokens)
        if tokens[:sure] != expected.tokens[:sure] or len(tokens) != len(expected.tokens):
            sizes = (len(case.prompt), case.guide and len(case.guide))
            found.append(
                f"case {i} {case.method or 'plain'} {sizes}: {tokens} != {expected.tokens}"
            )
    return found
