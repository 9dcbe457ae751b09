"""A drafter for tests: it knows the answers, and is wrong at every fifth token."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

__all__ = ["LOOKUP_ON_DEVICE", "WRONG", "Drafter", "inform", "speculative_config"]

WRONG = 7
"""The draft where it is wrong, and those for rows whose answer it does not know."""

LOOKUP_ON_DEVICE: dict[str, Any] = {
    "method": "ngram_gpu", "num_speculative_tokens": 3, "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}  # fmt: skip
"""vLLM's argument for its own drafter of model runner V2."""


def speculative_config(tokens: int = 3) -> dict[str, Any]:
    """vLLM's argument that makes it draft with `Drafter`."""
    return {
        "method": "custom_class",
        "model": f"{Drafter.__module__}.{Drafter.__qualname__}",
        "num_speculative_tokens": tokens,
    }


class Drafter:
    """Drafts what the answers say.

    Args:
        vllm_config: of the engine.
    """

    answers: ClassVar[list[tuple[list[int], list[int]]]] = []
    """Prompts and their answers."""
    always: ClassVar[list[int]] = []
    """What it drafts for every row, instead."""
    drafts: ClassVar[bool] = True
    """Whether it drafts anything."""

    def __init__(self, vllm_config: Any) -> None:
        self._most = vllm_config.speculative_config.num_speculative_tokens

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """There is none."""

    def propose(
        self, sampled: list[list[int]], lengths: np.ndarray, token_ids: np.ndarray, **_: Any
    ) -> list[list[int]]:
        """Drafts for each row.

        Args:
            sampled: the tokens that each row has just taken.
            lengths: ``[R] int32``: known tokens of each row.
            token_ids: ``[R, max_model_len] int32``: these tokens.
        """
        return [
            self.of(token_ids[row, : lengths[row]].tolist()) if taken and self.drafts else []
            for row, taken in enumerate(sampled)
        ]

    def of(self, known: list[int]) -> list[int]:
        """Drafts after these tokens of a row."""
        if self.always:
            return self.always[: self._most]
        for prompt, answer in self.answers:
            done = len(known) - len(prompt)
            if done > 0 and known == prompt + answer[:done]:
                places = range(done, min(done + self._most, len(answer)))
                return [WRONG if place % 5 == 4 else answer[place] for place in places]
        return [WRONG] * self._most


def inform(runner: Any) -> None:
    """On model runner V2: most drafts are those of `Drafter`, the others vLLM's own.

    Args:
        runner: of an engine with `LOOKUP_ON_DEVICE`.
    """
    drafter, propose = Drafter(runner.vllm_config), runner.speculator.propose

    def informed(batch: Any, *args: Any, **named: Any) -> Any:
        drafts, states = propose(batch, *args, **named), runner.req_states
        slots = batch.idx_mapping[: len(batch.req_ids)].long()
        lengths = states.total_len.gpu[slots].tolist()
        for row, length in enumerate(lengths):
            if length % 3:
                known = states.all_token_ids.gpu[slots[row], :length].tolist()
                for place, token in enumerate(drafter.of(known)):
                    drafts[row, place] = token
        # Those of guides have just been overwritten.
        return runner.divserve_share(drafts)

    runner.speculator.propose = informed
