"""What a request asks of the engines, and the checks of what they cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from divserve.decoding import Spec
from divserve.engine.adapters import adapters_needed
from divserve.engine.order import OnSmall, spec_of
from divserve.errors import InvalidRequest

__all__ = ["check_adapters", "check_drafts", "check_extras", "check_switch", "order_of"]


def order_of(params: SamplingParams) -> Spec | OnSmall | None:
    """What a guided request asks for; None for a plain one.

    Raises:
        VLLMValidationError: a client has used one of our keys in ``extra_args``.
    """
    try:
        return spec_of(params)
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter="vllm_xargs") from None


def check_drafts(params: SamplingParams, speculative: Any) -> None:
    """Raises `VLLMValidationError` for what vLLM cannot do beside draft tokens.

    vLLM's own check names neither the field nor a way out.

    Args:
        params: of any request.
        speculative: vLLM's ``SpeculativeConfig``, or None.
    """
    if speculative is None:
        return
    for field, way in {"min_p": "leave it out, or send 0", "logit_bias": "leave it out"}.items():
        if getattr(params, field):
            raise VLLMValidationError(
                f"{field} is not supported by a server with --speculative-config: {way}.",
                parameter=field,
            )


def check_extras(spec: Spec, extras: frozenset[str]) -> None:
    """Raises `InvalidRequest` if the request needs models that are not among ``extras``."""
    others = {"small": spec.switch is not None, "look-back": spec.look is not None}
    needed = (*spec.amateurs, *(name for name, given in others.items() if given))
    if lacking := [f"--{name}" for name in needed if name not in extras]:
        raise InvalidRequest(
            f"this server runs without {' and '.join(lacking)}",
            param="decoding.method",
            code="method_unavailable",
        )


def check_adapters(spec: Spec, own: Any, max_loras: int) -> None:
    """Raises `InvalidRequest` for a grounding text beside LoRA adapters, or too many of these.

    vLLM applies adapters only to the logits of rows that are sampled in the step, but a text needs
    the logits of all its positions.

    Args:
        spec: of the request.
        own: the request's ``LoRARequest``, or None.
        max_loras: adapters that a step may use; 0: the server has none.
    """
    needed = len(adapters_needed(spec, own))
    if needed > max_loras:
        raise InvalidRequest(
            f"this request and its guides need {needed} LoRA adapters at once; the server was "
            f"started with --max-loras {max_loras}",
            param="decoding.guide.model",
        )
    if spec.grounding and max_loras:
        raise InvalidRequest(
            "a grounding text cannot be read on a server with --enable-lora",
            param="decoding.method",
            code="method_unavailable",
        )


def check_switch(
    prompt: Sequence[int], params: SamplingParams, options: dict[str, Any], vocab: int
) -> None:
    """Raises `InvalidRequest` for anything that only one of the two engines could do.

    Args:
        prompt: token ids.
        params: the request's, as they go to the engine.
        options: other arguments of ``generate``.
        vocab: token ids below it are known to both models.
    """
    if options.get("lora_request") is not None:
        raise InvalidRequest("entropy_switch takes no LoRA adapter.", param="model")
    if params.prompt_logprobs is not None:
        raise InvalidRequest(
            "entropy_switch takes no prompt_logprobs: two models read the prompt.",
            param="prompt_logprobs",
        )
    named = {"logit_bias": params.logit_bias, "allowed_token_ids": params.allowed_token_ids}
    for param, ids in {"prompt": prompt, **named}.items():
        if any(int(i) >= vocab for i in ids or ()):
            raise InvalidRequest(
                f"{param} has token ids from {vocab} on, which one of the two models lacks.",
                param=param,
            )
