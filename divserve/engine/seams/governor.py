"""Seams of the draft tokens of a step, and of the governor that chooses how many are verified."""

from __future__ import annotations

from divserve.engine.seams.scheduler import REQUEST, SCHEDULER, SCHEDULER_OUTPUT
from divserve.engine.seams.seam import Seam, seams

__all__ = ["GOVERNOR_SEAMS"]

DRAFTS = "divserve/engine/scheduler/drafts.py"
GOVERNOR = "divserve/engine/scheduler/governor.py"
RUNNER_OUTPUT = "vllm.v1.outputs:ModelRunnerOutput"

GOVERNOR_SEAMS: tuple[Seam, ...] = (
    *seams(
        SCHEDULER, DRAFTS, "read",
        max_num_scheduled_tokens="the budget of drafts", running="whose drafts are chosen",
    ),
    *seams(
        REQUEST, DRAFTS, "written",
        spec_token_ids="fewer, the same for all members; a new list, because under asynchronous "
        "scheduling vLLM gives all requests the same one",
    ),
    *seams(REQUEST, DRAFTS, "read", is_prefill_chunk="which requests sample"),
    *seams(
        "vllm.sampling_params:SamplingParams", DRAFTS, "read",
        sampling_type="whether a request samples with a seed",
    ),
    *seams(
        SCHEDULER_OUTPUT, GOVERNOR, "read",
        scheduled_spec_decode_tokens="which drafts are verified",
        total_num_scheduled_tokens="whether the step only decodes",
        num_scheduled_tokens="the rows of the step",
        scheduled_new_reqs="steps that admit are not measured",
        scheduled_cached_reqs="steps that admit again are not measured",
    ),
    *seams(
        RUNNER_OUTPUT, GOVERNOR, "read",
        req_id_to_index="whose tokens", sampled_token_ids="how many drafts were accepted",
    ),
)  # fmt: skip
