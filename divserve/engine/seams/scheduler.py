"""Seams of the subclass of vLLM's scheduler; `objects` has those of the objects that it asks."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = [
    "ASYNC", "CACHE", "OUTPUT", "OUTPUTS", "QUEUE", "REQUEST", "SCHEDULER", "SCHEDULER_OUTPUT",
    "SCHEDULER_SEAMS",
]  # fmt: skip

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
ASYNC = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
CACHE = "vllm.v1.core.kv_cache_manager:KVCacheManager"
QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"
REQUEST = "vllm.v1.request:Request"
SCHEDULER_OUTPUT = "vllm.v1.core.sched.output:SchedulerOutput"
OUTPUT = "vllm.v1.engine:EngineCoreOutput"
OUTPUTS = "vllm.v1.engine:EngineCoreOutputs"

STEP = "divserve/engine/scheduler/scheduler.py"

_OVERRIDDEN = (
    *seams(
        SCHEDULER, STEP, "overridden",
        __init__="makes our objects; arguments pass through",
        add_request="makes the other rows of a request; puts a continuation at the head of the "
        "line",
        schedule="releases, joins and preempts whole groups before vLLM's loops run",
        _handle_blocked_waiting_request="admits all members of a group or none; False skips a "
        "request, and `_pause_state` = PAUSED_NEW ends admission for the step; a grammar compiled "
        "anew reads the answer so far",
        _get_local_prefix_cache_hit="leaves a token to compute before the held one; a probe starts "
        "from the blocks of its waiting request; further arguments pass through",
        _reserve_prefill_lookahead="vLLM's last word on a chunk: holds a member one token back and "
        "keeps tokens for requests that enter; 0 skips a running request. vLLM's own rule is "
        "repeated, not called",
        _preempt_request="calls an alarm off; the group stops sampling",
        update_from_output="takes back unguided tokens; adds statistics to outputs",
        _free_request="notes that a member has ended; calls an alarm off; forgets a rule; does not "
        "tell the front end of guides and probes",
        finish_requests="ends members together; reports the primary only",
        reset_prefix_cache="waiting requests let go of their blocks first",
    ),
    *seams(
        ASYNC, STEP, "overridden",
        __init__="makes our objects; arguments pass through",
    ),
    *seams(
        SCHEDULER, STEP, "patched",
        _update_request_with_output="ends a segment where its rule says; on the object itself, and "
        "only while there are rules",
    ),
    *seams(
        ASYNC, STEP, "patched",
        _update_request_with_output="as in the scheduler, under asynchronous scheduling",
    ),
)  # fmt: skip

_USED = (
    *seams(
        SCHEDULER, STEP, "copied",
        schedule="its order: hook for blocked requests, prefix cache, chunk, blocks",
    ),
    *seams(
        SCHEDULER, STEP, "called",
        _free_request_blocks="a waiting request begins again",
        _holds_kv_blocks="whether an entering request needs a new block",
    ),
    *seams(
        SCHEDULER, STEP, "written",
        _pause_state="PAUSED_NEW for the rest of a step that admits nobody else; vLLM reads it for "
        "every waiting request",
        running="without preempted members", waiting="a continuation at the head",
        grammar_compile_error_reqs="ends requests with an error in the coming update",
        finished_req_ids_dict="the front end is not told of guides and probes",
    ),
    *seams(
        SCHEDULER, STEP, "read",
        kv_cache_manager="free blocks; blocks of a waiting request",
        max_model_len="longest output; need of a row",
        max_num_active_reqs="free rows", num_lookahead_tokens="need of a row",
        policy="whether the line has a head", requires_kv_delivery="how to preempt",
        requests="an update of a known request is not a new one; all of them when all are ended",
        structured_output_manager="grammars of continuations", vllm_config="see next",
    ),
    *seams(
        "vllm.config.vllm:VllmConfig", STEP, "read",
        max_concurrent_batches="for how long a row keeps the blocks of its last states",
    ),
    *seams(
        CACHE, STEP, "called", get_blocks="blocks of a waiting request",
    ),
    *seams(
        "vllm.v1.core.kv_cache_manager:KVCacheBlocks", STEP, "read",
        blocks="tuples of blocks by KV group; made anew for a probe",
    ),
    *seams(
        QUEUE, STEP, "called",
        prepend_request="to the head", remove_requests="from its place",
    ),
    *seams(
        REQUEST, STEP, "written", status="FINISHED_STOPPED where a segment ends",
    ),
    *seams(
        REQUEST, STEP, "read",
        num_output_placeholders="tokens in flight count as known",
        num_tokens="known tokens", max_tokens="the client's length limit",
        client_index="whose front end is not told",
    ),
    *seams(
        SCHEDULER_OUTPUT, STEP, "read",
        scheduled_new_reqs="who was admitted", scheduled_cached_reqs="who was admitted again",
        num_scheduled_tokens="the rows of the step",
    ),
    *seams(
        "vllm.v1.core.sched.output:CachedRequestData", STEP, "read",
        resumed_req_ids="who was admitted again",
    ),
    *seams(
        "vllm.v1.core.sched.output:NewRequestData", STEP, "read", req_id="who was admitted",
    ),
    *seams(OUTPUTS, STEP, "written", outputs="without those of guides and probes"),
)  # fmt: skip

SCHEDULER_SEAMS: tuple[Seam, ...] = (*_OVERRIDDEN, *_USED)
