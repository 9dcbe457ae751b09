"""References that are given the tokens of an answer, and say how likely each of them was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tests.engine.cases import Case
from tests.support.engine import Engine
from tests.support.hf import combine

__all__ = ["Forced", "Reference", "Stock", "difference", "expected"]


class Reference(Protocol):
    """Computes one stream by itself."""

    name: str

    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """``[T, V] float64``: logits (up to a constant of each row) from which each of the T tokens
        after the prompt was chosen."""


class Forced:
    """Hugging Face in float32, one forward for a text."""

    name = "transformers, float32"

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for module in self._model.modules():
            # vLLM changes classes of transformers that its own models are made from.
            module.__dict__["do_not_compile"] = True

    @torch.inference_mode()
    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """See `Reference`."""
        ids = torch.tensor([prompt + tokens[:-1]])
        found: Tensor = self._model(ids, use_cache=False).logits[0, len(prompt) - 1 :].double()
        return found


class Stock:
    """vLLM without divserve: the log-probs of a whole text as a prompt.

    Args:
        engine: its own, with ``max_logprobs`` -1.
    """

    name = "stock vLLM, one prompt at a time"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, ...], Tensor] = {}

    def logits(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """See `Reference`."""
        text = (len(prompt), *prompt, *tokens)
        if text not in self._known:
            self._known[text] = self._read(prompt, tokens)
        return self._known[text]

    def _read(self, prompt: list[int], tokens: list[int]) -> Tensor:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, prompt_logprobs=-1
        )
        (output,) = self._engine.generate([(prompt + tokens, params)])
        rows = output.prompt_logprobs[len(prompt) :]
        found = torch.empty(len(rows), len(rows[0]), dtype=torch.float64)
        for row, log_probs in zip(found, rows, strict=True):
            for token, one in log_probs.items():
                row[token] = one.logprob
        return found


def expected(reference: Reference, case: Case, tokens: list[int]) -> Tensor:
    """Log-probs ``[T, V] float64`` of the (guided) distributions of a case's answer."""
    logits = reference.logits(case.prompt, tokens)
    if case.guide is not None:
        guides = reference.logits(case.guide, tokens)
        rows = zip(logits, guides, strict=True)
        logits = torch.stack([combine(case.method, *row) for row in rows])
    return logits.log_softmax(-1)


def difference(completion: Any, log_probs: Tensor) -> float:
    """The largest difference of an answer, nats: of a log-prob, or of a token to the likeliest.

    Args:
        completion: vLLM's, greedy, with log-probs.
        log_probs: ``[T, V]``, those that it should have.
    """
    worst = 0.0
    for token, own, row in zip(completion.token_ids, completion.logprobs, log_probs, strict=True):
        worst = max(worst, float(row.max() - row[token]))
        worst = max(worst, *(abs(one.logprob - float(row[i])) for i, one in own.items()))
    return worst
