"""A drafter for tests: it knows the answers, and is wrong at every fifth token."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

__all__ = ["WRONG", "Drafter", "speculative_config"]

WRONG = 7
"""The draft where it is wrong, and those for rows whose answer it does not know."""


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
            self._of(token_ids[row, : lengths[row]].tolist()) if taken and self.drafts else []
            for row, taken in enumerate(sampled)
        ]

    def _of(self, known: list[int]) -> list[int]:
        if self.always:
            return self.always[: self._most]
        for prompt, answer in self.answers:
            done = len(known) - len(prompt)
            if done > 0 and known == prompt + answer[:done]:
                places = range(done, min(done + self._most, len(answer)))
                return [WRONG if place % 5 == 4 else answer[place] for place in places]
        return [WRONG] * self._most
