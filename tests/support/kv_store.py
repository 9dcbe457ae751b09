"""A KV connector for tests: it keeps the blocks of ended requests in this process.

A test sets `STORE`, and so decides what the connector offers, when a load ends, and which fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorTransferResults,
)
from vllm.utils.math_utils import cdiv

MODULE = __name__


def configured(**fields: Any) -> dict[str, Any]:
    """vLLM's ``kv_transfer_config`` with this connector."""
    return {
        "kv_connector": "StoreConnector",
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        **fields,
    }


@dataclass
class Store:
    """What the connector keeps, and how it behaves."""

    waits: bool = False
    """Whether loads are asynchronous."""
    short: int = 1
    """A hit ends at least so many tokens before the end of a request; 0 needs ``waits``."""
    whole_blocks: bool = False
    """Whether a hit ends with a block."""
    steps: int = 2
    """Steps that an asynchronous load takes."""
    later: int = 0
    """How often a request is told to ask again."""
    fails: str = ""
    """``"blocks"``: the last block of each load is invalid; ``"request"``: each load fails."""
    attempts: int = 1 << 30
    """How many loads fail; the rest succeed."""
    kept: list[tuple[list[int], dict[str, Tensor]]] = field(default_factory=list)
    """Tokens, and by layer the blocks with their keys and values."""
    loaded: dict[str, int] = field(default_factory=dict)
    """Tokens that were loaded, by request."""
    told: dict[str, int] = field(default_factory=dict)
    """Tokens that vLLM wanted when it last gave blocks to a request."""

    def reset(self, **settings: Any) -> None:
        """A new store."""
        self.__init__(**settings)  # type: ignore[misc]

    def found(self, tokens: list[int]) -> tuple[int, dict[str, Tensor]]:
        """The longest common prefix with what is kept, and its blocks."""
        best: tuple[int, dict[str, Tensor]] = 0, {}
        for kept, layers in self.kept:
            common = next(
                (i for i, (a, b) in enumerate(zip(kept, tokens, strict=False)) if a != b),
                min(len(kept), len(tokens)),
            )
            if common > best[0]:
                best = common, layers
        return best


STORE = Store()


@dataclass
class Load:
    """Blocks of a request that are to be filled."""

    request: str
    first: int
    """Its first block to fill."""
    blocks: list[int]
    layers: dict[str, Tensor]
    steps: int
    """0: synchronous."""


@dataclass
class Jobs(KVConnectorMetadata):  # type: ignore[misc]
    """What the worker has to do in a step."""

    loads: list[Load]
    saves: list[tuple[str, list[int], list[int]]]
    """Request, tokens, blocks."""


class StoreConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Both halves of the connector; scheduler and worker have one each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.block_size = self._vllm_config.cache_config.block_size
        self.jobs = Jobs([], [])
        self.asked: dict[str, int] = {}
        self.offers: dict[str, tuple[int, dict[str, Tensor]]] = {}
        self.caches: dict[str, Tensor] = {}
        self.running: list[Load] = []
        self.saved: set[str] = set()
        self.invalid: set[int] = set()

    # In the scheduler.

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        name = request.request_id
        self.asked[name] = self.asked.get(name, 0) + 1
        if self.asked[name] <= STORE.later:
            return None, False
        common, layers = STORE.found(list(request.all_token_ids))
        # vLLM would ask again and again for a single token.
        tokens = min(common, request.num_tokens - STORE.short) if request.num_tokens > 1 else 0
        if STORE.whole_blocks:
            tokens -= tokens % self.block_size
        self.offers[name] = num_computed_tokens, layers
        more = max(0, tokens - num_computed_tokens)
        return more, STORE.waits and more > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        name = request.request_id
        STORE.told[name] = num_external_tokens
        if not num_external_tokens:
            return
        local, layers = self.offers.pop(name)
        STORE.loaded[name] = STORE.loaded.get(name, 0) + num_external_tokens
        (ids,) = blocks.get_block_ids()
        first, last = local // self.block_size, cdiv(local + num_external_tokens, self.block_size)
        assert len(ids) >= last, "too few blocks for what was offered"
        steps = STORE.steps if STORE.waits else 0
        self.jobs.loads.append(Load(name, first, ids[first:last], layers, steps))

    def build_connector_meta(self, scheduler_output: Any) -> Jobs:
        jobs, self.jobs = self.jobs, Jobs([], [])
        return jobs

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        self.offers.pop(request.request_id, None)
        known = min(request.num_computed_tokens, request.num_tokens - 1)
        whole = known // self.block_size
        if str(request.status) != "FINISHED_LENGTH_CAPPED" or not whole:
            return False, None
        tokens = list(request.all_token_ids)[:known]
        self.jobs.saves.append(
            (request.request_id, tokens, block_ids[: cdiv(known, self.block_size)])
        )
        return True, None

    # In the worker.

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        self.caches = kv_caches

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        for load in self._connector_metadata.loads:
            if load.steps:
                self.running.append(load)
            else:
                self._fill(load)

    def _fill(self, load: Load) -> bool:
        """Fills blocks; returns whether the load has failed."""
        good, fails = load.blocks, STORE.fails if STORE.attempts > 0 else ""
        STORE.attempts -= 1
        if fails == "blocks":
            good = load.blocks[:-1]
            self.invalid.add(load.blocks[-1])
        for layer, kept in load.layers.items():
            cache = self.caches[layer]
            axis = list(cache.shape).index(self._kv_cache_config.num_blocks)
            for i, block in enumerate(load.blocks):
                there = cache.select(axis, block)
                if block in good and fails != "request":
                    there.copy_(kept.select(axis, load.first + i))
                else:
                    there.fill_(3.0)
        return fails == "request"

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None:
        for name, tokens, blocks in self._connector_metadata.saves:
            layers = {}
            for layer, cache in self.caches.items():
                axis = list(cache.shape).index(self._kv_cache_config.num_blocks)
                index = cache.new_tensor(blocks).long()
                layers[layer] = cache.index_select(axis, index)
            STORE.kept.append((tokens, layers))
            self.saved.add(name)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        done, failed = set(), set()
        for load in [*self.running]:
            load.steps -= 1
            if not load.steps:
                self.running.remove(load)
                done.add(load.request)
                if self._fill(load):
                    failed.add(load.request)
        saved, self.saved = self.saved, set()
        return KVConnectorTransferResults(saved, done, failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        invalid, self.invalid = self.invalid, set()
        return invalid
