"""Seams of KV transfer in the scheduler."""

from __future__ import annotations

from divserve.engine.seams.scheduler import CACHE, QUEUE, REQUEST, SCHEDULER, STEP
from divserve.engine.seams.seam import Seam, seams

__all__ = ["TRANSFER_SEAMS"]

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1"
TRANSFER = "divserve/engine/scheduler/transfer.py"

TRANSFER_SEAMS: tuple[Seam, ...] = (
    *seams(
        CONNECTOR, TRANSFER, "patched",
        get_num_new_matched_tokens="on the object itself: offers less for members of groups",
    ),
    *seams(
        SCHEDULER, STEP, "overridden",
        _handle_invalid_blocks="the group of a request that could not be loaded starts over or "
        "ends as a whole",
        _handle_failed_recving="likewise, where all of it has failed",
    ),
    *seams(
        SCHEDULER, STEP, "read",
        recompute_kv_load_failures="whether to start over or to end",
        kv_cache_config="whether ids of blocks are unique",
    ),
    *seams(
        SCHEDULER, TRANSFER, "copied",
        _update_waiting_for_remote_kv="how it frees the blocks of a load that has failed",
    ),
    *seams(
        SCHEDULER, TRANSFER, "called",
        _inflight_prefill_reserved_blocks="what loads and prefills have yet to take",
    ),
    *seams(
        SCHEDULER, TRANSFER, "written",
        _inflight_prefills="without requests that have no blocks",
        kv_holding_waiting="likewise", waiting="with these, at the head",
    ),
    *seams(
        SCHEDULER, TRANSFER, "read",
        block_size="a group whose members have no whole block is admitted as a whole",
        connector="whether there is one",
        deferred_frees="blocks that come free with the steps in flight",
        finished_recving_kv_req_ids="which loads have ended",
        kv_cache_manager="blocks that could not be loaded",
        requests="requests that could not be loaded", running="likewise",
    ),
    *seams(
        CACHE, TRANSFER, "called",
        evict_blocks="what could not be loaded is no prefix", get_block_ids="of a request",
    ),
    *seams(
        QUEUE, TRANSFER, "called",
        prepend_request="to the head", remove_requests="from its place",
    ),
    *seams(REQUEST, TRANSFER, "written", num_computed_tokens="0 where it begins again"),
)  # fmt: skip
