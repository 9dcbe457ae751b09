"""Prompts of token ids that end within a character: the answer begins with that character only.

vLLM 0.32 primes its detokenizer with the prompt. If the prompt's text is not complete, the text of
the first tokens is computed from its beginning, and the answer repeats the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

__all__ = ["install"]

LONGEST = 4
"""Tokens of a character: as many as it has bytes."""
CUT = "\N{REPLACEMENT CHARACTER}"


def install(output_processor: Any) -> None:
    """Makes the processor prime its detokenizers with complete characters."""
    add_request = output_processor.add_request

    def added(request: Any, *args: Any, **kwargs: Any) -> None:
        states, request_id = output_processor.request_states, request.request_id
        is_new = request_id not in states
        add_request(request, *args, **kwargs)
        if is_new:
            _prime(states[request_id].detokenizer, request.prompt_token_ids or ())

    output_processor.add_request = added


def _prime(detokenizer: Any, prompt: Sequence[int]) -> None:
    if not isinstance(detokenizer, FastIncrementalDetokenizer):
        return
    tokenizer, skip = detokenizer.tokenizer, detokenizer.skip_special_tokens

    def is_cut(end: int) -> bool:
        text: str = tokenizer.decode(list(prompt[max(0, end - LONGEST) : end]), skip)
        return text.endswith(CUT)

    last = len(prompt)
    first = max(0, last - LONGEST)
    end = next((end for end in range(last, first, -1) if not is_cut(end)), first)
    if end == last:
        return
    detokenizer.stream = DecodeStream(ids=list(prompt[:end]), skip_special_tokens=skip)
    for token_id in prompt[end:]:
        detokenizer.stream.step(tokenizer, token_id)
