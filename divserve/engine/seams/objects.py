"""Seams of the objects that the scheduler asks, and of the messages between processes."""

from __future__ import annotations

from divserve.engine.seams.scheduler import (
    CACHE,
    OUTPUT,
    OUTPUTS,
    QUEUE,
    REQUEST,
    SCHEDULER,
    SCHEDULER_OUTPUT,
)
from divserve.engine.seams.seam import Seam, seams

__all__ = ["OBJECT_SEAMS"]

COORDINATOR = "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator"
KV_GROUP = "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager"
PARAMS = "vllm.sampling_params:SamplingParams"
POOL = "vllm.v1.core.block_pool:BlockPool"
LORA = "vllm.lora.request:LoRARequest"
RUNNER_OUTPUT = "vllm.v1.outputs:ModelRunnerOutput"

ADMISSION = "divserve/engine/scheduler/admission.py"
ADAPTERS = "divserve/engine/scheduler/adapters.py"
OF_GUIDE = "divserve/engine/adapters.py"
ALARMS = "divserve/engine/scheduler/alarms.py"
BLOCKS = "divserve/engine/scheduler/blocks.py"
CHUNKS = "divserve/engine/scheduler/chunks.py"
ENDINGS = "divserve/engine/scheduler/endings.py"
ENTRY = "divserve/engine/scheduler/entry.py"
GROUP = "divserve/engine/scheduler/group.py"
MEMBERS = "divserve/engine/scheduler/members.py"
PREFLIGHT = "divserve/engine/scheduler/preflight.py"
REPORTS = "divserve/engine/scheduler/reports.py"
RULES = "divserve/engine/scheduler/switch_rules.py"
ORDER = "divserve/engine/order.py"
REPORTED = "divserve/engine/reported.py"

_ENTRY = (
    *seams(
        SCHEDULER, ENTRY, "written",
        _pause_state="PAUSED_NEW for a step that has preempted",
        running="members of ready groups side by side, in front",
        waiting="one-token members and the rest of a group at the head, for a step",
        kv_holding_waiting="put back after a step",
    ),
    *seams(
        SCHEDULER, ENTRY, "read",
        _inflight_prefills="tokens that requests in the middle of a prefill still take",
        max_num_active_reqs="free rows", num_waiting_for_streaming_input="free rows",
        max_num_scheduled_tokens="the budget beside those that enter",
        policy="whether the line has a head",
    ),
    *seams(
        SCHEDULER, ENTRY, "copied",
        schedule="in which order its loops read the lists; what admits a request",
    ),
    *seams(
        QUEUE, ENTRY, "called",
        prepend_request="to the head", remove_requests="from its place",
        add_request="back to its place", peek_request="the head",
    ),
)  # fmt: skip

_ADMISSION = (
    *seams(
        SCHEDULER, ADMISSION, "copied",
        schedule="what admits a request: rows, tokens, blocks, adapters",
    ),
    *seams(
        CACHE, ADMISSION, "copied",
        allocate_slots="admits where blocks and the watermark are free",
    ),
    *seams(
        REQUEST, ADMISSION, "read",
        has_encoder_inputs="more than tokens keeps it from being admitted",
        num_stale_output_tokens="a preempted member waits for what is in flight",
        prompt_token_ids="prompt embeddings are refused", resumable="streaming input is refused",
    ),
)  # fmt: skip

_ADAPTERS = (
    *seams(
        SCHEDULER, ADAPTERS, "read",
        lora_config="how many adapters a step may have", running="their adapters are in use",
    ),
    *seams(
        SCHEDULER, ADAPTERS, "copied",
        schedule="a request whose adapter would be one too many is skipped",
    ),
    *seams("vllm.config.lora:LoRAConfig", ADAPTERS, "read", max_loras="adapters of a step"),
    *seams(REQUEST, ADAPTERS, "read", lora_request="its adapter"),
    *seams(LORA, ADAPTERS, "read", lora_int_id="which adapter it is"),
    *seams(LORA, OF_GUIDE, "read", lora_int_id="which adapter it is"),
)  # fmt: skip

_BLOCKS = (
    *seams(
        SCHEDULER, BLOCKS, "copied",
        schedule="tokens that the running loop will ask for, and whom it passes over",
    ),
    *seams(CACHE, BLOCKS, "copied", allocate_slots="how it asks for a request's new blocks"),
    *seams(
        CACHE, BLOCKS, "read",
        block_pool="free blocks", coordinator="block sizes; asks for new blocks",
        empty_kv_cache_blocks="asks for new blocks",
        watermark_blocks="blocks that admission leaves free",
    ),
    *seams(
        COORDINATOR, BLOCKS, "called",
        find_longest_cache_hit="a shorter cached prefix",
        get_num_blocks_to_allocate="need of the coming step",
    ),
    *seams(CACHE, BLOCKS, "called", create_kv_cache_blocks="of a shorter cached prefix"),
    *seams(COORDINATOR, BLOCKS, "read", single_type_managers="all KV groups"),
    *seams(
        KV_GROUP, BLOCKS, "read",
        block_size="of a KV group",
        max_admission_blocks_per_request="most blocks of a row with a window",
        kv_cache_spec="whether it holds recurrent state",
    ),
    *seams(
        "vllm.v1.kv_cache_interface:MambaSpec", BLOCKS, "read",
        mamba_cache_mode="whether a row's state moves on to new blocks",
        num_speculative_blocks="most blocks of a row with a state",
        num_prefill_checkpoint_blocks="most blocks of a row with a state",
    ),
    *seams(
        "vllm.v1.core.kv_cache_manager:KVCacheBlocks", BLOCKS, "read", blocks="none, by KV group",
    ),
    *seams(POOL, BLOCKS, "called", get_num_free_blocks="free blocks"),
    *seams(POOL, BLOCKS, "read", num_gpu_blocks="whether a group can ever fit"),
    *seams(
        REQUEST, BLOCKS, "read",
        num_computed_tokens="need of a row", num_output_placeholders="rows at their last token",
        block_hashes="a shorter cached prefix",
    ),
)  # fmt: skip

_PREFLIGHT = (
    *seams(SCHEDULER, PREFLIGHT, "copied", schedule="whom it preempts"),
    *seams(
        SCHEDULER, PREFLIGHT, "read",
        max_num_scheduled_tokens="need of all rows", policy="whom to preempt",
        running="whole units of it are preempted", current_step="which rows take part",
    ),
    *seams(SCHEDULER, CHUNKS, "copied", schedule="how much of a prompt it reads in a step"),
    *seams(
        SCHEDULER, CHUNKS, "read",
        scheduler_config="see next", running="among whom a step is divided",
        waiting="among whom a step is divided", kv_holding_waiting="among whom a step is divided",
        max_num_scheduled_tokens="the whole step",
        need_mamba_block_aligned_split="whether chunks end at blocks",
        mamba_partial_cache_hit="at which blocks", block_size="of a chunk",
        hash_block_size="of a chunk",
    ),
    *seams(
        SCHEDULER, CHUNKS, "copied",
        _mamba_block_aligned_split="where it cuts a prompt with recurrent state",
    ),
    *seams(
        "vllm.config.scheduler:SchedulerConfig", CHUNKS, "read",
        long_prefill_token_threshold="chunk of a prompt",
        long_prefill_token_threshold_adaptive="whether it grows with the room of a step",
        max_num_batched_tokens="the room of a step",
    ),
    *seams(
        REQUEST, PREFLIGHT, "read", priority="whom to preempt", arrival_time="whom to preempt",
    ),
)  # fmt: skip

_ALARMS = (
    *seams(
        SCHEDULER, ALARMS, "copied",
        _preempt_request="a request that waits for probes is a preempted one with its blocks",
    ),
    *seams(
        SCHEDULER, ALARMS, "written",
        kv_holding_waiting="requests that wait with their blocks, and probes",
        prev_step_scheduled_req_ids="who begins again is told of all of its tokens",
        reset_preempted_req_ids="model runner V2 forgets who waits",
        running="without who waits", waiting="who begins again, at the head",
    ),
    *seams(
        SCHEDULER, ALARMS, "read",
        block_size="the last, partly filled block", policy="whether the line has a head",
        requests="probes that have ended",
    ),
    *seams(
        QUEUE, ALARMS, "called",
        prepend_request="probes, in order", remove_requests="from its place",
        add_request="who waits",
    ),
    *seams(
        REQUEST, ALARMS, "written",
        status="PREEMPTED", num_computed_tokens="all tokens but the last",
        spec_token_ids="none", drop_stale_output="a row on its way is thrown away",
        num_stale_output_tokens="what is on its way", num_output_placeholders="0",
        num_preemptions="one more where it begins again",
    ),
    *seams(REQUEST, ALARMS, "read", num_in_flight_tokens="what is on its way"),
)  # fmt: skip

_MEMBERS = (
    *seams(
        SCHEDULER, GROUP, "copied",
        _is_blocked_waiting_status="statuses of requests that wait for something else first",
    ),
    *seams(
        REQUEST, GROUP, "read",
        num_computed_tokens="tokens left to feed", num_tokens="tokens left to feed",
        num_output_placeholders="tokens in flight count as known",
        num_stale_output_tokens="who may join", status="who runs, who may be admitted",
    ),
    *seams(
        REQUEST, MEMBERS, "called",
        __init__="guides, grounding texts, probes", update_block_hashes="a probe's last block",
    ),
    *seams(
        REQUEST, MEMBERS, "written",
        _block_hasher="probes hash as their primaries do", block_hashes="a probe has its primary's",
        max_tokens="the cap of all members", sampling_params="a copy with the group's order",
    ),
    *seams(
        REQUEST, MEMBERS, "read",
        all_token_ids="what a probe reads", client_index="where outputs go",
    ),
    *seams(
        PARAMS, MEMBERS, "written",
        extra_args="the order for the workers", max_tokens="the cap of all members",
        temperature="candidates are drawn", top_p="likewise", top_k="likewise", min_p="likewise",
    ),
    *seams(PARAMS, MEMBERS, "called", clone="the children of n > 1 share theirs"),
    *seams(
        PARAMS, MEMBERS, "read",
        skip_reading_prefix_cache="a grounding text is read from its first token on",
    ),
)  # fmt: skip

_UPDATE = (
    *seams(
        SCHEDULER, ENDINGS, "copied",
        update_from_output="how it makes the output of a request that ends with an error",
    ),
    *seams(
        REQUEST, ENDINGS, "called",
        get_finished_reason="of a primary that loses a guide", take_events="of such a primary",
    ),
    *seams(REQUEST, ENDINGS, "read", client_index="which front end is told"),
    *seams(OUTPUTS, ENDINGS, "written", outputs="with that of a primary that loses a guide"),
    *seams(
        RUNNER_OUTPUT, REPORTS, "written",
        sampled_token_ids="emptied for tokens taken back",
        prompt_logprobs_dict="without those that came with a token taken back",
        prompt_token_id_logprobs_dict="likewise",
    ),
    *seams(
        OUTPUT, REPORTS, "written",
        new_prompt_logprobs_tensors="those that came with an earlier token, taken back",
        prompt_token_id_logprobs="likewise",
    ),
    *seams(RUNNER_OUTPUT, REPORTS, "read", req_id_to_index="the token's row"),
    *seams(SCHEDULER_OUTPUT, REPORTS, "read", num_scheduled_tokens="the rows of the step"),
    *seams(
        OUTPUT, REPORTS, "read",
        finish_reason="whether the rule ended a segment", new_token_ids="whether it has a token",
    ),
    *seams(
        REQUEST, REPORTS, "read",
        num_stale_output_tokens="whether a report is of a step before a preemption",
    ),
    *seams(
        "vllm.v1.structured_output:StructuredOutputManager", RULES, "called",
        accept_tokens="a grammar reads the answer so far",
    ),
    *seams(REQUEST, RULES, "called", append_output_token_ids="a continuation"),
    *seams(
        REQUEST, RULES, "written",
        prefill_stats="None: vLLM asserts that only a prompt comes out of the cache",
    ),
    *seams(REQUEST, RULES, "read", use_structured_output="whether it has a grammar"),
)  # fmt: skip

_MESSAGES = (
    *seams(PARAMS, ORDER, "written", extra_args="orders to the scheduler and the workers"),
    *seams(
        OUTPUT, REPORTED, "written",
        kv_transfer_params="carries the report of a token; the front end takes it off",
    ),
)  # fmt: skip

OBJECT_SEAMS: tuple[Seam, ...] = (
    *_ENTRY, *_ADMISSION, *_ADAPTERS, *_BLOCKS, *_PREFLIGHT, *_ALARMS, *_MEMBERS, *_UPDATE,
    *_MESSAGES,
)  # fmt: skip
