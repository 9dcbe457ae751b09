"""The requests that the scheduler makes: guides, grounding texts, probes."""

from __future__ import annotations

import copy

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from divserve.decoding import Spec
from divserve.engine.adapters import adapter_of
from divserve.engine.order import (
    GroupOrder,
    Order,
    ProbeOrder,
    ReadOrder,
    TextOrder,
    row_order_params,
    without_orders,
)

__all__ = ["document_of", "made_for", "probe"]

GUIDE_SUFFIX = "~guide"
GROUNDING_SUFFIX = "~grounding"
PROBE_SUFFIX = "~look"


def made_for(
    request: Request, order: Order, max_tokens: int
) -> tuple[tuple[Request, ...], Request | None]:
    """Makes the other rows of ``request``, and marks it as the primary for the workers.

    The guides never end before the primary: no EOS, no stop ids, no shorter length limit. The
    primary's sampling parameters are copied first because the n children of a request share them.

    Args:
        request: the client's request; its sampling parameters are replaced.
        order: what the front end asks for.
        max_tokens: length cap of the primary and its guides.

    Returns:
        The guides, and the request that reads the grounding text.
    """
    primary, spec = request.request_id, order.spec
    params: SamplingParams = copy.copy(request.sampling_params)
    guide_params = SamplingParams(
        # Greedy guides for greedy primaries and random for random keep the sampler's fast paths.
        temperature=params.temperature,
        max_tokens=max_tokens,
        ignore_eos=True,
        detokenize=False,
    )
    names = [f"{primary}{GUIDE_SUFFIX}{i or ''}" for i in range(len(spec.guides))]
    guides = tuple(
        _twin(
            request,
            names[i],
            ids,
            _scored(guide_params, primary, i + 1) if spec.reading else guide_params,
            adapter_of(spec, i, request.lora_request),
        )
        for i, ids in enumerate(spec.guides)
    )
    grounding = _grounding(request, spec) if spec.grounding else None
    row_order = GroupOrder(
        program=spec.program,
        guides=tuple(names),
        temperature_program=spec.temperature_program,
        grounded=grounding is not None,
        amateurs=len(spec.amateurs),
        vocab=order.vocab,
        output=order.output,
        look=spec.look,
        document=document_of(request.prompt_token_ids or [], spec.guides),
        top=spec.top,
        reading=spec.reading,
    )
    if spec.look is not None and spec.look.greedy:
        # Steps without an alarm are greedy whatever the request says. Candidates of an alarm are
        # drawn from their whole distribution, by a generator that greedy requests do not have.
        params = params.clone()
        params.temperature, params.top_p, params.top_k, params.min_p = 1.0, 1.0, 0, 0.0
    params.max_tokens = max_tokens
    params.extra_args = {
        **(without_orders(params.extra_args) or {}),
        **row_order_params(row_order),
    }
    request.sampling_params = params
    request.max_tokens = max_tokens
    return guides, grounding


def _scored(params: SamplingParams, primary: str, column: int) -> SamplingParams:
    """The parameters of a guide whose end is scored."""
    own = params.clone()
    own.extra_args = row_order_params(ReadOrder(primary, column))
    return own


def document_of(prompt: list[int], guides: list[list[int]]) -> tuple[int, int]:
    """Where the document of a prompt begins and ends: between the parts that a guide shares.

    Args:
        prompt: token ids of the primary's prompt.
        guides: those of the guides.

    Returns:
        Equal places if there is no guide, or one that is not shorter than the prompt.
    """
    guide = guides[0] if guides else prompt
    if len(guide) >= len(prompt):
        return 0, 0
    begin = _alike(prompt, guide)
    return begin, len(prompt) - _alike(prompt[begin:][::-1], guide[begin:][::-1])


def _alike(first: list[int], second: list[int]) -> int:
    """Length of the longest common prefix. Slices compare a hundred times faster than items."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def probe(primary: Request, index: int, token: int, copied: int) -> Request:
    """A request that reads a candidate for the primary's next token, then ends.

    Args:
        primary: the request whose text so far it starts from.
        index: index of the candidate.
        token: id of the candidate.
        copied: first position in the block that is copied for it.
    """
    params = SamplingParams(
        temperature=primary.sampling_params.temperature,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        extra_args=row_order_params(ProbeOrder(primary.request_id, index, token, copied)),
    )
    name = f"{primary.request_id}{PROBE_SUFFIX}{index}"
    ids = [*primary.all_token_ids, token]
    made = _twin(primary, name, ids, params, primary.lora_request, hashed=False)
    # Reuses the primary's hashes instead of hashing its whole text again for every candidate.
    made.block_hashes = list(primary.block_hashes)
    made._block_hasher = primary._block_hasher
    made.update_block_hashes()
    return made


def _grounding(request: Request, spec: Spec) -> Request:
    """A request that reads the grounding text from its first token on, then ends."""
    order = TextOrder(request.request_id, len(spec.grounding), spec.average)
    params = SamplingParams(
        temperature=request.sampling_params.temperature,
        max_tokens=1,
        ignore_eos=True,
        detokenize=False,
        # The cache does not keep the distributions of its tokens.
        skip_reading_prefix_cache=True,
        extra_args=row_order_params(order),
    )
    name = request.request_id + GROUNDING_SUFFIX
    return _twin(request, name, spec.grounding, params, request.lora_request)


def _twin(
    request: Request,
    request_id: str,
    token_ids: list[int],
    params: SamplingParams,
    adapter: LoRARequest | None,
    hashed: bool = True,
) -> Request:
    """A request of our own with the client and priority of ``request``."""
    return Request(
        request_id=request_id,
        prompt_token_ids=token_ids,
        sampling_params=params,
        pooling_params=None,
        client_index=request.client_index,
        arrival_time=request.arrival_time,
        lora_request=adapter,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=request._block_hasher if hashed else None,
    )
