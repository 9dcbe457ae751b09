"""The likeliest tokens that an engine reports, and those of a Hugging Face model in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from divserve.decoding.spec import Top
from divserve.engine.order import ORDER_KEY
from tests.support.engine import Engine, report_of
from tests.support.hf import Reference, combine
from tests.support.platform import ON_GPU

__all__ = ["ASKED", "ONE_GUIDE", "Reported", "asking", "streams_of", "wrong", "wrong_of"]

ONE_GUIDE = ("cad", "adacad", "cfg", "instructive")
"""Methods of which `wrong_of` knows the guided logits."""
ASKED = 4
ERROR = 1e-2 if ON_GPU else 1e-3
"""Error of a log-prob in float32, nats; contrasts enlarge that of their streams."""


class Reported:
    """What the scheduler of an engine tells the front end, by request id."""

    def __init__(self, engine: Engine) -> None:
        self._tops: dict[str, list[Top]] = {}
        self._update = engine.scheduler.update_from_output
        engine.scheduler.update_from_output = self._collect

    def _collect(self, *args: Any) -> Any:
        outputs = self._update(*args)
        for step in outputs.values():
            for output in step.outputs:
                if (report := report_of(output)) is not None:
                    self._tops.setdefault(output.request_id, []).extend(report.tops)
        return outputs

    def take(self, outputs: Sequence[Any]) -> list[list[Top]]:
        """The likeliest tokens behind each token of vLLM's outputs, and forgets all others."""
        found = [
            [top for name, tops in self._tops.items() if _is(name, one) for top in tops]
            for one in outputs
        ]
        self._tops.clear()
        return found


def _is(name: str, output: Any) -> bool:
    """Whether this is the engine's name of an output's request, which has a random end."""
    return name == output.request_id or name.startswith(f"{output.request_id}-")


@torch.inference_mode()
def streams_of(model: Any, prompts: Sequence[Sequence[int]], answer: Sequence[int]) -> list[Tensor]:
    """For each prompt, the logits ``[len(answer), V] float64`` behind the tokens of the answer."""
    return [
        model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        for prompt in prompts
    ]


def wrong(
    tops: Sequence[Top],
    k: int,
    streams: Sequence[Tensor],
    combined: Callable[[list[Tensor]], Tensor],
) -> list[str]:
    """Where the likeliest tokens differ from those of the reference.

    Args:
        tops: what was reported, by token.
        k: how many were asked for.
        streams: ``[T, V] float64``: the reference's logits of each raw stream.
        combined: makes the guided logits ``[V]`` of a token from those of its streams.
    """
    found = [] if len(tops) == len(streams[0]) else [f"{len(tops)} of {len(streams[0])} tokens"]
    for i, top in enumerate(tops):
        logits = [stream[i] for stream in streams]
        every = [*logits, combined(logits)]
        if len(top) != len(every):
            found.append(f"token {i}: {len(top)} streams")
        for j, (own, expected) in enumerate(zip(top, every, strict=False)):
            found += [f"token {i}, stream {j}: {own}"] * (not _equal(own, expected, k))
    return found


def asking(order: dict[str, Any], top: int) -> dict[str, Any]:
    """An order for the engine that also asks for the likeliest tokens."""
    packed = order[ORDER_KEY]
    return {**order, ORDER_KEY: {**packed, "spec": {**packed["spec"], "top": top}}}


def wrong_of(
    reference: Reference, cases: Sequence[Any], answers: Sequence[Any], tops: Sequence[list[Top]]
) -> list[str]:
    """As `wrong`, of requests of `ONE_GUIDE` that ask for `ASKED` tokens.

    Args:
        reference: the model.
        cases: with ``name``, ``prompt`` and ``order``.
        answers: vLLM's outputs.
        tops: what was reported.
    """
    found = []
    for case, answer, own in zip(cases, answers, tops, strict=True):
        (guide,) = case.order[ORDER_KEY]["spec"]["guides"]
        tokens = answer.outputs[0].token_ids
        streams = streams_of(reference.model, [case.prompt, guide], tokens)
        way = partial(_combined, case.name)
        found += [f"{case.name}: {one}" for one in wrong(own, ASKED, streams, way)]
    return found


def _combined(method: str, logits: list[Tensor]) -> Tensor:
    return combine(method, *logits)


def _equal(own: tuple[tuple[int, ...], tuple[float, ...]], logits: Tensor, k: int) -> bool:
    ids, logprobs = own
    expected = logits.double().log_softmax(-1)
    best = [value for value in expected.topk(k).values.tolist() if value > -math.inf]
    own_best = expected[list(ids)].tolist()
    same = len(ids) == len(set(ids)) == len(best) == len(logprobs)
    return same and all(
        abs(one - other) < ERROR and abs(one - third) < ERROR
        for one, other, third in zip(logprobs, best, own_best, strict=True)
    )
