"""Front end: has the engine read one text, and returns the figures of its tokens."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from divserve.decoding import Read, Reading, Spec
from divserve.engine.order import with_spec
from divserve.errors import DecodingFailed, InvalidRequest

__all__ = ["Found", "Sought", "check_engine", "read"]


@dataclass(frozen=True)
class Sought:
    """A text behind a prompt, and behind the guides of a spec."""

    prompt: list[int]
    """Token ids before the text; not empty."""
    text: list[int]
    """Token ids that are scored; not empty."""
    spec: Spec
    """Programs, and the guides without the text."""
    reading: Reading

    @property
    def tokens(self) -> int:
        """Number of tokens that are read, those of the guides left out."""
        return len(self.prompt) + len(self.text)


@dataclass(frozen=True)
class Found:
    """What the engine has returned."""

    read: Read
    cached_tokens: int
    """Tokens of the prompt that came from the prefix cache."""


def check_engine(config: Any) -> None:
    """Raises `InvalidRequest` if an engine cannot score.

    Args:
        config: its ``VllmConfig``.
    """
    refused = {
        "--enable-lora": config.lora_config is not None,
        "--kv-transfer-config": config.kv_transfer_config is not None,
    }
    for flag, given in refused.items():
        if given:
            raise InvalidRequest(
                f"a server with {flag} scores no texts: the logits of all positions of a prompt "
                "are not computed there",
                code="method_unavailable",
            )


async def read(client: Any, sought: Sought, request_id: str) -> Found:
    """Has a text read.

    Args:
        client: the `GuidedClient`.
        sought: the text.
        request_id: a new one.

    Raises:
        InvalidRequest: prompt and guides do not fit in the engine.
        DecodingFailed: the engine returned nothing.
    """
    guides = [guide + sought.text for guide in sought.spec.guides]
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    with_spec(params, replace(sought.spec, guides=guides, reading=sought.reading))
    prompt = tokens_input(sought.prompt + sought.text)
    found: Found | None = None
    async with aclosing(client.generate(prompt, params, request_id)) as outputs:
        async for output in outputs:
            for choice in output.outputs:
                if (figures := getattr(choice, "read", None)) is not None:
                    found = Found(figures, output.num_cached_tokens or 0)
    if found is None:
        raise DecodingFailed("the engine returned no figures of the text; retry the request")
    return found
