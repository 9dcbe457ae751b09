"""Greedy references of many prompts of one length at once: plain Hugging Face float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.hf import Answer

__all__ = ["greedy_batch"]

Combined = Callable[[int, list[Tensor]], Tensor]
"""Guided logits ``[V]`` of a row from its number and the logits of its streams."""


@torch.inference_mode()
def greedy_batch(
    streams: Sequence[tuple[Any, list[list[int]]]], combined: Combined, max_tokens: int
) -> list[Answer]:
    """Decodes greedily, row by row, from the logits of one forward per stream.

    Args:
        streams: a model and its prompts, all of one length, for each stream; a stream with a
            smaller vocabulary reads its last token in place of those that it lacks.
        combined: computes the guided logits of a row.
        max_tokens: tokens to generate.
    """
    answers = [Answer() for _ in streams[0][1]]
    feeds = [torch.tensor(prompts) for _, prompts in streams]
    caches: list[Any] = [None] * len(streams)
    for _ in range(max_tokens):
        logits = []
        for i, (model, _) in enumerate(streams):
            known = feeds[i].clamp_max(model.config.vocab_size - 1)
            out = model(known, past_key_values=caches[i], use_cache=True)
            caches[i] = out.past_key_values
            logits.append(out.logits[:, -1].double())
        for row, answer in enumerate(answers):
            best = combined(row, [z[row] for z in logits]).topk(2)
            answer.margins.append(float(best.values[0] - best.values[1]))
            answer.tokens.append(int(best.indices[0]))
        feeds = [torch.tensor([answer.tokens[-1:] for answer in answers])] * len(streams)
    return answers
