"""Seams of the drafts of groups: who gets them, and how they are verified."""

from __future__ import annotations

from divserve.engine.seams.scheduler import REQUEST, SCHEDULER, SCHEDULER_OUTPUT
from divserve.engine.seams.seam import Seam, seams

__all__ = ["DRAFT_SEAMS"]

STEP = "divserve/engine/scheduler/scheduler.py"
AMATEUR = "divserve/engine/worker/amateur_drafts.py"

DRAFT_SEAMS: tuple[Seam, ...] = (
    *seams(
        SCHEDULER, STEP, "overridden",
        make_spec_decoding_stats="drafts of guides do not count",
        update_draft_token_ids="guides get their primary's drafts",
    ),
    *seams(SCHEDULER, STEP, "read", num_spec_tokens="whether anything is drafted"),
    *seams(
        SCHEDULER, STEP, "written",
        dynamic_sd_lookup="keeps vLLM from making up drafts for rows that enter",
    ),
    *seams(
        SCHEDULER, "divserve/engine/scheduler/entry.py", "read",
        num_spec_tokens="whether anything is drafted",
    ),
    *seams(
        REQUEST, "divserve/engine/scheduler/blocks.py", "read",
        spec_token_ids="drafts need slots, too",
    ),
    *seams(
        SCHEDULER_OUTPUT, "divserve/engine/scheduler/reports.py", "read",
        scheduled_spec_decode_tokens="how many drafts a step has verified",
    ),
    *seams(
        "vllm.v1.sample.rejection_sampler", "divserve/engine/worker/rejection.py", "patched",
        expand_batch_to_tokens="on CPU it leaves its output as it was allocated",
    ),
    *seams(
        "vllm.v1.worker.gpu_model_runner:ExecuteModelState",
        "divserve/engine/worker/runner_v1.py", "read",
        spec_decode_metadata="draft tokens of each row",
    ),
    *seams(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        "divserve/engine/worker/runner_v1.py", "read",
        num_draft_tokens="of each row",
    ),
    *seams(
        "vllm.v1.worker.gpu.input_batch:InputBatch", "divserve/engine/worker/runner_v2.py", "read",
        num_draft_tokens_per_req="draft tokens of each row",
    ),
    *seams(
        "vllm.v1.worker.gpu.spec_decode.speculator:BaseSpeculator",
        "divserve/engine/worker/runner_v2.py", "patched",
        propose="guides get their primary's drafts",
    ),
    *seams(
        "vllm.forward_context", AMATEUR, "called",
        set_forward_context="the amateur runs alone in it, to draft",
    ),
    *seams(
        "vllm.v1.attention.backend", AMATEUR, "called",
        CommonAttentionMetadata="the rows that draft, with one token each",
    ),
    *seams(
        "vllm.v1.worker.utils:AttentionGroup", AMATEUR, "called",
        build_metadata="what the amateur's layers need to know of these rows",
    ),
    *seams(
        "vllm.v1.worker.utils:AttentionGroup", AMATEUR, "read",
        layer_names="which of them are the amateur's",
    ),
    *seams(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner", AMATEUR, "read",
        attn_groups="the attention of the amateur's layers", input_batch="the rows of the step",
        device="where the amateur is",
    ),
    *seams(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner",
        "divserve/engine/worker/runner_v1.py", "read",
        drafter="whether the amateur drafts",
    ),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", AMATEUR, "read",
        req_id_to_index="the row of a request", num_tokens_no_spec="tokens of each row",
        block_table="where the amateur writes keys and values",
    ),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", AMATEUR, "written",
        token_ids_cpu="drafts in place of placeholders", spec_token_ids="the same, for penalties",
    ),
    *seams(
        "vllm.v1.worker.block_table:BlockTable", AMATEUR, "read",
        block_table="blocks of each row", block_size="their size",
    ),
    *seams(
        SCHEDULER_OUTPUT, "divserve/engine/worker/runner_v1.py", "read",
        scheduled_spec_decode_tokens="how many drafts the amateur is to make",
    ),
)  # fmt: skip
