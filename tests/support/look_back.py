"""Look-back decoding (Xu et al. 2023, Algorithm 1) with plain Hugging Face, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from divserve.decoding import STATISTICS, LookRow, LookState
from tests.support.engine import report_of
from tests.support.platform import ON_GPU

KL_ERROR = 1e-3 if ON_GPU else 1e-4
"""Error of a KL in float32, nats; see `tests.engine.cases.NEAR_TIE`."""
NEAR_TIE = 1e-2 if ON_GPU else 1e-3

Draw = Callable[[int, dict[int, float]], int]
"""Picks a candidate from the number of steps sampled before this one and the candidates' KLs."""


@dataclass
class Looked:
    """What the reference generated; one entry per token everywhere."""

    tokens: list[int] = field(default_factory=list)
    kl_min: list[float] = field(default_factory=list)
    nearest: list[int] = field(default_factory=list)
    candidates: list[dict[int, float]] = field(default_factory=list)
    """KL of each candidate; empty in a clear step."""
    margins: list[float] = field(default_factory=list)
    """How close the token was to being another one (nats)."""

    def sure(self, margin: float) -> int:
        """Tokens before the first one that rounding could change."""
        return next((i for i, m in enumerate(self.margins) if m < margin), len(self.tokens))

    @property
    def alarms(self) -> int:
        """How many tokens were chosen by looking ahead."""
        return sum(len(one) > 0 for one in self.candidates)


def log_probs(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Log-probs ``[N, T, V] float64`` of sequences of one length."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor(sequences)).logits
    return logits.double().log_softmax(-1)


def divergences(step: Tensor, earlier: Tensor) -> Tensor:
    """KL(step‖each) ``[n]`` of log-probs ``[V]`` and ``[n, V]``."""
    return (step.exp() * (step - earlier)).sum(-1)


def span(
    prompt: int, last: int, window: int = 128, reference: str = "prefix+generated", **_: Any
) -> tuple[int, int]:
    """First and one past the last position that the one at ``last`` is compared with."""
    first, stop = {
        "prefix+generated": (0, last),
        "prefix": (0, min(last, max(prompt - 1, 1))),
        "generated": (min(prompt - 1, last), last),
    }[reference]
    return (max(first, stop - window) if window else first), stop


def look_back(
    model: Any,
    prompt: list[int],
    count: int,
    draw: Draw,
    *,
    threshold: float,
    k: int = 8,
    window: int = 128,
    reference: str = "prefix+generated",
    wasted: int = 1,
) -> Looked:
    """Generates ``count`` tokens.

    Args:
        model: Hugging Face causal model.
        prompt: token ids.
        count: tokens to generate.
        draw: picks a candidate.
        threshold, k, window, reference: the method's parameters.
        wasted: steps that an alarm samples and discards before it draws.
    """
    found, text, sampled = Looked(), list(prompt), 0
    prefix = max(len(prompt) - 1, 1)
    for _ in range(count):
        known = log_probs(model, [text])[0]
        step, last = known[-1], len(text) - 1
        first, stop = span(len(prompt), last, window=window, reference=reference)
        kls = divergences(step, known[first:stop])
        kl_min = float(kls.min()) if len(kls) else math.inf
        found.kl_min.append(kl_min)
        found.nearest.append(first + int(kls.argmin()) + 1 if len(kls) else 0)
        best = step.topk(k + 1).values
        if kl_min <= threshold:
            tokens = step.topk(k).indices.tolist()
            ahead = log_probs(model, [[*text, token] for token in tokens])[:, -1]
            candidates = {
                token: float(divergences(one, known[:prefix]).min())
                for token, one in zip(tokens, ahead, strict=True)
            }
            # Nothing is scheduled ahead of the last token.
            in_vain = wasted if len(found.tokens) < count - 1 else 1
            token = draw(sampled + in_vain, candidates)
            sampled += in_vain
            near = min(float(best[-2] - best[-1]), abs(kl_min - threshold))
        else:
            candidates, token = {}, int(step.argmax())
            near = min(float(best[0] - best[1]), abs(kl_min - threshold))
        sampled += 1
        found.candidates.append(candidates)
        found.tokens.append(token)
        found.margins.append(near)
        text.append(token)
    return found


def recorded(engine: Any) -> dict[str, list[LookRow]]:
    """Rows by request id (without vLLM's suffix), filled while the engine runs."""
    rows: dict[str, list[LookRow]] = {}
    update = engine.scheduler.update_from_output

    def recording(*args: Any) -> Any:
        outputs = update(*args)
        for step in outputs.values():
            for output in step.outputs:
                report = report_of(output)
                for values in () if report is None else report.statistics:
                    if len(values) > len(STATISTICS):
                        name = output.request_id.rsplit("-", 1)[0]
                        rows.setdefault(name, []).append(LookRow.read(values[len(STATISTICS) :]))
        return outputs

    engine.scheduler.update_from_output = recording
    return rows


def as_vllm_draws(seed: int, vocab: int) -> Draw:
    """Draws as vLLM's CPU sampler does for a request with this seed."""

    def draw(sampled: int, candidates: dict[int, float]) -> int:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(sampled + 1):
            own = torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
        logits = torch.full((1, vocab), -1e4)
        for token, kl in candidates.items():
            logits[0, token] = -kl
        return int(torch.ops._C.fused_gumbel_argmax(logits, own))

    return draw


def problems(
    model: Any, prompt: list[int], tokens: list[int], rows: list[LookRow], rule: dict[str, Any]
) -> list[str]:
    """What is wrong with an answer and its report, whatever was drawn; empty if nothing is."""
    if len(rows) != len(tokens):
        return [f"{len(rows)} rows for {len(tokens)} tokens"]
    known = log_probs(model, [[*prompt, *tokens]])[0]
    prefix = max(len(prompt) - 1, 1)
    found = []
    for i, (token, row) in enumerate(zip(tokens, rows, strict=True)):
        last = len(prompt) - 1 + i
        step = known[last]
        first, stop = span(len(prompt), last, **rule)
        kls = divergences(step, known[first:stop])
        kl_min = float(kls.min()) if len(kls) else math.inf
        best = step.topk(rule["k"] + 1)
        if abs(row.kl_min - kl_min) > KL_ERROR and row.kl_min != kl_min:
            found.append(f"token {i}: KLmin {row.kl_min} is {kl_min}")
        elif len(kls) and float(kls[row.nearest - 1 - first]) > kl_min + KL_ERROR:
            found.append(f"token {i}: nearest is {row.nearest}")
        if abs(kl_min - rule["threshold"]) < 2 * KL_ERROR:
            continue
        if (row.state == LookState.CHOSEN) != (kl_min <= rule["threshold"]):
            found.append(f"token {i}: {row.state!r} at {kl_min}")
        elif row.state == LookState.CLEAR:
            if rule.get("otherwise") != "sample" and float(step.max() - step[token]) > NEAR_TIE:
                found.append(f"token {i}: {token} is not the likeliest")
        else:
            found += _wrong_candidates(model, [*prompt, *tokens[:i]], known[:prefix], row, best)
            if token not in row.tokens:
                found.append(f"token {i}: {token} is not one of {row.tokens}")
    return found


def _wrong_candidates(
    model: Any, text: list[int], prefix: Tensor, row: LookRow, best: Any
) -> list[str]:
    values, ids = best.values.tolist(), best.indices.tolist()
    if values[-2] - values[-1] > NEAR_TIE and set(row.tokens) != set(ids[:-1]):
        return [f"candidates {row.tokens} are {ids[:-1]}"]
    ahead = log_probs(model, [[*text, token] for token in row.tokens])[:, -1]
    expected = [float(divergences(one, prefix).min()) for one in ahead]
    if any(abs(a - b) > KL_ERROR for a, b in zip(row.kls, expected, strict=True)):
        return [f"KLs {row.kls} are {expected}"]
    return []
