"""Seams of the scheduler's process."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = ["SCHEDULER_SEAMS"]

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
ASYNC = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
CACHE = "vllm.v1.core.kv_cache_manager:KVCacheManager"
COORDINATOR = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator"
POOL = "vllm.v1.core.block_pool:BlockPool"
QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"
REQUEST = "vllm.v1.request:Request"

ADMISSION = "divserve/engine/scheduler/admission.py"
ENDING = "divserve/engine/scheduler/ending.py"
GROUP = "divserve/engine/scheduler/group.py"
LOOK_BACK = "divserve/engine/scheduler/look_back.py"
PREFLIGHT = "divserve/engine/scheduler/preflight.py"
STEP = "divserve/engine/scheduler/scheduler.py"
SWITCHING = "divserve/engine/scheduler/switching.py"
TELEMETRY = "divserve/engine/scheduler/telemetry.py"

_CONSTRUCTORS = tuple(
    Seam(f"{owner}.__init__", "overridden", "adds state; arguments pass through", file)
    for owner in (SCHEDULER, ASYNC)
    for file in (ADMISSION, ENDING, LOOK_BACK, SWITCHING, TELEMETRY)
)

_ADMISSION = (
    *seams(
        SCHEDULER, ADMISSION, "overridden",
        add_request="makes the other rows of a request",
        _handle_blocked_waiting_request="admits all members or none; False skips a request",
        _get_local_prefix_cache_hit="leaves a token before the held one",
        _reserve_prefill_lookahead="last word on a chunk: holds a member one token back; 0 skips "
        "a running request and ends admission",
    ),
    *seams(
        SCHEDULER, ADMISSION, "copied",
        schedule="its order: hook for blocked requests, prefix cache, chunk, blocks",
    ),
    *seams(
        SCHEDULER, ADMISSION, "called",
        _is_blocked_waiting_status="a member whose grammar compiles cannot come in",
    ),
    *seams(
        SCHEDULER, ADMISSION, "read",
        block_size="rounds a cached prefix",
        kv_cache_manager="free blocks",
        max_model_len="longest output",
        max_num_active_reqs="free rows",
        requests="an update of a known request is no new one",
        running="free rows; an empty engine",
    ),
    *seams(
        CACHE, ADMISSION, "copied",
        allocate_slots="admits where blocks + watermark are free",
    ),
    *seams(CACHE, ADMISSION, "called", truncate_computed_blocks="a shorter cached prefix"),
    *seams(
        CACHE, ADMISSION, "read",
        watermark_blocks="blocks that admission leaves free",
        coordinator="block sizes", block_pool="free blocks",
    ),
    *seams(COORDINATOR, ADMISSION, "read", single_type_managers="block sizes of all KV groups"),
    *seams(POOL, ADMISSION, "called", get_num_free_blocks="whether a group fits"),
    *seams(POOL, ADMISSION, "read", num_gpu_blocks="whether a group can ever fit"),
    *seams(
        REQUEST, ADMISSION, "read",
        num_output_placeholders="tokens in flight count as known",
        num_stale_output_tokens="a preempted member waits for what is in flight",
        resumable="streaming input is refused",
    ),
)  # fmt: skip

_STEP = (
    *seams(
        SCHEDULER, STEP, "overridden",
        schedule="releases, joins and preempts whole groups first",
        update_from_output="takes back unguided tokens; adds statistics to outputs",
    ),
    *seams(
        SCHEDULER, STEP, "written",
        _pause_state="PAUSED_NEW for a step that admits nobody",
        running="members side by side, in front",
        waiting="one-token members and the rest of a group at the head, for a step",
        kv_holding_waiting="put back after a step",
        grammar_compile_error_reqs="ends requests with an error in the coming update",
    ),
    *seams(
        SCHEDULER, STEP, "read",
        max_num_active_reqs="free rows", max_num_scheduled_tokens="the budget beside joins",
        num_waiting_for_streaming_input="free rows", policy="what a queue can do",
    ),
    *seams(
        QUEUE, STEP, "called",
        prepend_request="to the head", remove_requests="from its place",
        add_request="back to its place",
    ),
    *seams(
        "vllm.v1.engine:EngineCoreOutput", STEP, "written",
        kv_transfer_params="statistics of a token on their way to the front end",
    ),
    *seams("vllm.v1.engine:EngineCoreOutputs", STEP, "written", outputs="without guides' outputs"),
    *seams(
        "vllm.v1.outputs:ModelRunnerOutput", STEP, "read",
        sampled_token_ids="emptied for a token that is taken back",
        req_id_to_index="the token's row",
    ),
    *seams(
        "vllm.v1.core.sched.output:SchedulerOutput", STEP, "read",
        num_scheduled_tokens="the rows of the step",
    ),
)  # fmt: skip

_PREFLIGHT = (
    *seams(
        SCHEDULER, PREFLIGHT, "copied",
        schedule="tokens that the running loop will ask for, and whom it passes over",
    ),
    *seams(
        SCHEDULER, PREFLIGHT, "called",
        _preempt_request="preempts all members together",
        _holds_kv_blocks="who needs a new block",
    ),
    *seams(
        SCHEDULER, PREFLIGHT, "read",
        kv_cache_manager="need and free blocks", max_model_len="need of a row",
        max_num_scheduled_tokens="need of all rows", num_lookahead_tokens="need of a row",
        policy="whom to preempt", requires_kv_delivery="how to preempt",
        running="whole units of it are preempted",
    ),
    *seams(CACHE, PREFLIGHT, "copied", allocate_slots="how it asks for a request's new blocks"),
    *seams(
        CACHE, PREFLIGHT, "read",
        empty_kv_cache_blocks="asks for new blocks", watermark_blocks="blocks of who enters",
        coordinator="asks for new blocks", block_pool="free blocks",
    ),
    *seams(
        COORDINATOR, PREFLIGHT, "called",
        get_num_blocks_to_allocate="need of the coming step",
    ),
    *seams(COORDINATOR, PREFLIGHT, "read", single_type_managers="an upper bound of the need"),
    *seams(POOL, PREFLIGHT, "called", get_num_free_blocks="free blocks"),
)  # fmt: skip

_ENDING = (
    *seams(
        SCHEDULER, ENDING, "overridden",
        _free_request="notes that a member has ended",
        finish_requests="ends members together; reports the primary only",
    ),
    *seams(
        SCHEDULER, ENDING, "read",
        finished_req_ids_dict="the front end is not told of guides", requests="all of them",
    ),
)  # fmt: skip

_LOOK_BACK = (
    *seams(
        SCHEDULER, LOOK_BACK, "overridden",
        _handle_blocked_waiting_request="probes enter in the step that has room for them",
        _get_local_prefix_cache_hit="a probe starts from the blocks of a waiting request",
        _preempt_request="calls an alarm off",
        _free_request="calls an alarm off; the front end is not told of probes",
        reset_prefix_cache="waiting requests let go of their blocks first",
    ),
    *seams(
        SCHEDULER, LOOK_BACK, "copied",
        _preempt_request="a request that waits for probes is a preempted one with its blocks",
    ),
    *seams(
        SCHEDULER, LOOK_BACK, "called",
        _free_request_blocks="a waiting request begins again",
        add_request="probes", finish_requests="probes that nobody waits for",
    ),
    *seams(
        SCHEDULER, LOOK_BACK, "read",
        block_size="the last, partly filled block", kv_cache_manager="blocks of a waiting request",
        policy="what a queue can do", requests="probes that have ended",
        finished_req_ids_dict="the front end is not told of probes",
    ),
    *seams(
        SCHEDULER, LOOK_BACK, "written",
        kv_holding_waiting="requests that wait with their blocks, and probes",
        prev_step_scheduled_req_ids="who begins again is told of all of its tokens",
        reset_preempted_req_ids="model runner V2 forgets who waits",
        running="without who waits", waiting="who begins again, at the head",
    ),
    *seams(
        REQUEST, LOOK_BACK, "written",
        status="PREEMPTED", num_computed_tokens="all tokens but the last",
        spec_token_ids="none", drop_stale_output="a row on its way is thrown away",
        num_stale_output_tokens="what is on its way", num_output_placeholders="0",
        num_preemptions="one more where it begins again",
    ),
    *seams(REQUEST, LOOK_BACK, "read", num_in_flight_tokens="what is on its way"),
    *seams(
        QUEUE, LOOK_BACK, "called",
        prepend_request="probes, in order", remove_requests="from its place",
        add_request="who waits",
    ),
    *seams(CACHE, LOOK_BACK, "called", get_blocks="blocks of a waiting request"),
    *seams(
        CACHE, LOOK_BACK, "read",
        block_pool="free blocks", watermark_blocks="blocks to leave free",
    ),
    *seams(POOL, LOOK_BACK, "called", get_num_free_blocks="how many probes enter"),
    *seams(
        "vllm.v1.core.kv_cache_manager:KVCacheBlocks", LOOK_BACK, "read",
        blocks="tuples of blocks by KV group; made anew",
    ),
)  # fmt: skip

_SWITCHING = (
    *seams(
        SCHEDULER, SWITCHING, "overridden",
        add_request="a continuation has output and goes to the head of the line",
        _handle_blocked_waiting_request="a grammar compiled anew reads the answer so far",
        _update_request_with_output="ends a segment where its rule says",
        _free_request="forgets its rule",
    ),
    *seams(
        ASYNC, SWITCHING, "overridden",
        _update_request_with_output="as above, under asynchronous scheduling",
    ),
    *seams(
        SCHEDULER, SWITCHING, "read",
        policy="whether a line has a head", structured_output_manager="a grammar",
        waiting="the head of the line",
    ),
    *seams(
        "vllm.v1.structured_output:StructuredOutputManager", SWITCHING, "called",
        accept_tokens="a grammar reads the answer so far",
    ),
    *seams(REQUEST, SWITCHING, "called", append_output_token_ids="a continuation"),
    *seams(
        REQUEST, SWITCHING, "written",
        prefill_stats="None: vLLM asserts that only a prompt comes out of the cache",
        status="FINISHED_STOPPED",
    ),
    *seams(
        QUEUE, SWITCHING, "called",
        prepend_request="to the head", remove_requests="from its place",
    ),
)  # fmt: skip

_TELEMETRY = (
    *seams(
        SCHEDULER, TELEMETRY, "overridden",
        add_request="a group waits for its admission from now on",
    ),
)  # fmt: skip

_GROUP = (
    *seams(
        REQUEST, GROUP, "called",
        __init__="guides, texts, probes", update_block_hashes="a probe's last block",
    ),
    *seams(
        REQUEST, GROUP, "written",
        _block_hasher="probes hash as their primaries do", block_hashes="a probe has its primary's",
        max_tokens="the cap of all members", sampling_params="a copy with the group's order",
    ),
    *seams(
        REQUEST, GROUP, "read",
        num_output_placeholders="tokens in flight count as known",
        num_computed_tokens="tokens left to feed", num_tokens="tokens left to feed",
        num_stale_output_tokens="who may join", all_token_ids="what a probe reads",
        client_index="where outputs go",
    ),
    *seams(
        "vllm.sampling_params:SamplingParams", GROUP, "written",
        extra_args="the order for the workers", max_tokens="the cap of all members",
        temperature="candidates are drawn", top_p="likewise", top_k="likewise", min_p="likewise",
    ),
    *seams(
        "vllm.sampling_params:SamplingParams", GROUP, "read",
        skip_reading_prefix_cache="a grounding text is read from its first token on",
    ),
)  # fmt: skip

SCHEDULER_SEAMS = (
    *_CONSTRUCTORS,
    *_ADMISSION,
    *_STEP,
    *_PREFLIGHT,
    *_ENDING,
    *_LOOK_BACK,
    *_SWITCHING,
    *_TELEMETRY,
    *_GROUP,
)
