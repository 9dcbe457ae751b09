"""Seams of leaving rows out of sampling: what both runners' samplers are given and return."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = ["SAMPLING_SEAMS"]

SAMPLED = "divserve/engine/worker/sampled_rows.py"

SAMPLING_SEAMS: tuple[Seam, ...] = (
    *seams(
        "vllm.v1.sample.metadata:SamplingMetadata", SAMPLED, "read",
        temperature="of fewer rows", top_p="likewise", top_k="likewise",
        output_token_ids="of fewer rows",
        spec_token_ids="likewise", allowed_token_ids_mask="likewise",
        bad_words_token_ids="of fewer rows, by their places", logprob_token_ids="likewise",
        prompt_token_ids="of fewer rows, if there are penalties", frequency_penalties="likewise",
        presence_penalties="likewise", repetition_penalties="likewise",
        no_penalties="whether there are any", all_greedy="whether a draw reads each row once",
        max_num_logprobs="likewise", logitsprocs="those that are active count all rows",
        thinking_budget_state_holder="likewise",
    ),
    *seams(
        "vllm.v1.sample.logits_processor.builtin:MinPLogitsProcessor", SAMPLED, "read",
        min_p_count="whether it is active",
    ),
    *seams(
        "vllm.v1.sample.logits_processor.builtin:LogitBiasLogitsProcessor", SAMPLED, "read",
        biases="whether it is active",
    ),
    *seams(
        "vllm.v1.sample.logits_processor.builtin:MinTokensLogitsProcessor", SAMPLED, "read",
        min_toks="whether it is active",
    ),
    *seams(
        "vllm.v1.worker.gpu.input_batch:InputBatch", SAMPLED, "read",
        num_reqs="fewer", num_draft_tokens="none", idx_mapping="of fewer rows",
        idx_mapping_np="likewise", expanded_idx_mapping="likewise", expanded_local_pos="likewise",
        logits_indices="likewise", seq_lens="likewise", seq_lens_cpu_upper_bound="likewise",
        cu_num_logits="likewise", cu_num_logits_np="likewise",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.sampler:Sampler", SAMPLED, "read",
        sampling_states="whether top-k or top-p is asked for",
        penalties_state="whether penalties are", return_sampling_mask="then all rows are sampled",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.sampler:Sampler", SAMPLED, "called",
        get_logprobs_dims="whether logprobs are asked for",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.states:SamplingStates", SAMPLED, "read",
        top_k="see above", top_p="see above", vocab_size="top-k of everybody",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.penalties:PenaltiesState", SAMPLED, "read",
        use_penalty="see above",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.output:SamplerOutput", SAMPLED, "read",
        sampled_token_ids="of all rows again", num_nans="likewise", num_sampled="likewise",
        num_rejected="likewise", logprobs_tensors="likewise",
    ),
)  # fmt: skip
