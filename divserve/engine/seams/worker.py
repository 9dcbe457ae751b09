"""Seams of the workers: what is done to a step, and the models beside the served one."""

from __future__ import annotations

from divserve.engine.seams.seam import Seam, seams

__all__ = ["MIXED_INTO", "WORKER_SEAMS"]

V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
SCHEDULER_OUTPUT = "vllm.v1.core.sched.output:SchedulerOutput"
RUNNER_OUTPUT = "vllm.v1.outputs:ModelRunnerOutput"
LOADER = "vllm.model_executor.model_loader.base_loader:BaseModelLoader"
HIDDEN = "vllm.model_executor.models.extract_hidden_states"
MODEL = "vllm.model_executor.models.interfaces_base"

GUIDANCE = "divserve/engine/worker/guidance.py"
PIPELINE = "divserve/engine/worker/pipeline.py"
REPORT = "divserve/engine/worker/report.py"
READER = "divserve/engine/worker/reader.py"
RANKS = "divserve/engine/worker/ranks.py"
RUNNER_V1 = "divserve/engine/worker/runner_v1.py"
RUNNER_V2 = "divserve/engine/worker/runner_v2.py"
WORKER = "divserve/engine/worker/worker.py"
DROPPED = "divserve/engine/worker/dropped.py"
LORA = "divserve/engine/worker/lora.py"
DROP = "divserve/engine/models/drop.py"
LOADING = "divserve/engine/models/loader.py"
HEAD = "divserve/engine/models/linear_head.py"
STORE = "divserve/engine/models/hidden_store.py"

MIXED_INTO = {
    "divserve.engine.worker.runner_v1:GuidedRunner": (
        V1,
        "vllm.v1.worker.cpu_model_runner:CPUModelRunner",
    ),
    "divserve.engine.worker.runner_v2:GuidedRunnerV2": (
        V2,
        "vllm.v1.worker.cpu.model_runner:CPUModelRunner",
    ),
}
"""Our classes that are put in front of a vLLM class at start-up, by re-classing."""

_WORKER = (
    *seams(
        "vllm.v1.worker.gpu_worker:Worker", WORKER, "overridden",
        init_device="hooks into the runner that it builds; checks the kernels",
        load_model="checks the kernels and the store of hidden states",
        execute_model="ends the process if it fails on one of several ranks",
        sample_tokens="likewise",
        sleep="level 2 keeps the amateurs' weights", wake_up="puts them back",
        update_config="refuses to replace the loader of the extras",
    ),
    *seams(
        "vllm.v1.worker.cpu_worker:CPUWorker", WORKER, "overridden",
        init_device="checks the kernels before threads are bound; hooks into the runner",
        get_kv_cache_spec="no states in the middle of a chunk: the CPU's kernel returns none",
    ),
    *seams(
        "vllm.v1.kv_cache_interface:MambaSpec", WORKER, "written",
        num_prefill_checkpoint_blocks="0 on CPU", prefill_checkpoint_alignment="None on CPU",
    ),
    *seams(
        "vllm.v1.worker.gpu_worker:Worker", WORKER, "read",
        device="where the kernels run", model_config="the vocabulary",
        use_v2_model_runner="which runner it is", model_runner="re-classed",
        vllm_config="the load format",
    ),
    *seams(
        "vllm.config.model:ModelConfig", WORKER, "read",
        head_dtype="the dtype of logits, for which kernels are compiled",
    ),
    *seams(
        "vllm.lora.ops.torch_ops.lora_ops", LORA, "patched",
        bgmv_shrink="rows without an adapter are skipped",
        bgmv_expand="the same", bgmv_expand_slice="the same",
    ),
    *seams(
        "vllm.v1.worker.gpu_worker:Worker", WORKER, "called",
        get_model="the store of hidden states", get_kv_cache_spec="what the store costs",
    ),
    *seams(
        "vllm.v1.worker.gpu_worker:Worker", WORKER, "read", parallel_config="number of ranks",
    ),
    *seams(
        "vllm.config.parallel:ParallelConfig", WORKER, "read", world_size="number of ranks",
    ),
    *seams(
        "vllm.distributed.parallel_state", WORKER, "called", get_pp_group="the stages",
    ),
    *seams(
        "vllm.distributed.parallel_state:GroupCoordinator", WORKER, "read",
        is_first_rank="it receives no states",
    ),
    *seams(
        V1, WORKER, "written", intermediate_tensors="on CPU, where the warm-up is left out",
    ),
    *seams(
        V1, WORKER, "read",
        max_num_tokens="of a step", dtype="of states", device="where they are",
        model="makes room for states",
    ),
)  # fmt: skip

_RANKS = (
    *seams(
        "vllm.distributed.parallel_state", RANKS, "called",
        get_tp_group="the ranks that sample from the same logits",
        get_world_group="all ranks of an engine",
    ),
    *seams(
        "vllm.distributed.parallel_state:GroupCoordinator", RANKS, "read",
        world_size="whether there are other ranks",
        cpu_group="agrees on layouts", device_group="adds up failures",
    ),
)  # fmt: skip

_V1 = (
    *seams(
        V1, RUNNER_V1, "overridden",
        _update_states="takes up groups, before the batch changes",
        sample_tokens="guides the raw logits; attaches the report",
        _sample="the guide rows take their primaries' tokens",
    ),
    *seams(
        V1, RUNNER_V1, "written",
        execute_model_state="with guided logits",
        input_batch="see InputBatch below",
    ),
    *seams(
        V1, RUNNER_V1, "read",
        discard_request_mask="rows that sample", query_start_loc="where the rows' tokens begin",
        model="its logits", model_config="the vocabulary", device="where the tables are",
        kv_cache_config="number of blocks",
    ),
    *seams(V1, RUNNER_V1, "called", sampler="with the rows that are not guides"),
    *seams(V1, RUNNER_V1, "copied", _sample="what it does without drafts"),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", RUNNER_V1, "called",
        update_async_output_token_ids="before rows are left out",
    ),
    *seams(
        "vllm.v1.worker.gpu_model_runner:ExecuteModelState", RUNNER_V1, "read",
        logits="guided", hidden_states="texts that are read", sample_hidden_states="amateurs",
    ),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", RUNNER_V1, "patched",
        add_request="output that another engine decoded, for a step",
    ),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", RUNNER_V1, "written",
        sampling_metadata="temperatures of rows that look back, for a step",
        generators="without those of rows that do not sample, for a step",
    ),
    *seams("vllm.v1.worker.gpu_input_batch:InputBatch", RUNNER_V1, "read", req_ids="the rows"),
    *seams(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState", RUNNER_V1, "written",
        output_token_ids="output that another engine decoded",
    ),
    *seams(
        "vllm.v1.sample.metadata:SamplingMetadata", RUNNER_V1, "written",
        temperature="of rows that look back", all_random="False",
        generators="by their places among fewer rows",
    ),
    *seams(
        SCHEDULER_OUTPUT, RUNNER_V1, "read",
        kv_cache_block_copies="the store follows copied blocks",
    ),
    *seams(
        "vllm.v1.outputs:SamplerOutput", RUNNER_V1, "read",
        sampled_token_ids="changed in place",
    ),
)  # fmt: skip

_LOOKUP = (
    *seams(
        V1, RUNNER_V1, "overridden",
        propose_draft_token_ids="vLLM drafts for plain requests; guided ones get drafts of ours",
    ),
    *seams(
        V1, RUNNER_V1, "read",
        speculative_config="whether it is n-gram look-up, and the lengths of its matches",
    ),
    *seams(
        "vllm.v1.spec_decode.ngram_proposer:NgramProposer", RUNNER_V1, "called",
        propose="compiled at start-up",
    ),
    *seams(
        "vllm.v1.worker.gpu_input_batch:InputBatch", RUNNER_V1, "read",
        token_ids_cpu="known tokens of the rows", num_tokens_no_spec="how many",
    ),
    *seams(
        SCHEDULER_OUTPUT, RUNNER_V1, "read",
        num_spec_tokens_to_schedule="most drafts of a row",
    ),
)  # fmt: skip

_V2 = (
    *seams(
        V2, RUNNER_V2, "overridden",
        add_requests="takes up groups; called in every step",
        sample="guides the raw logits; the guide rows take their primaries' tokens",
        sample_tokens="attaches the report",
    ),
    *seams(
        V2, RUNNER_V2, "read",
        model="its logits", model_config="the vocabulary", device="where the tables are",
    ),
    *seams(V2, RUNNER_V2, "written", sampler="gets fewer rows, for a step",
        rejection_sampler="its logits are read first, for a step",
    ),
    *seams(
        f"{MODEL}:VllmModelForTextGeneration", RUNNER_V2, "patched",
        compute_logits="guides what it returns, for a step",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.sampler:Sampler", RUNNER_V2, "read", sampling_states="see next",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.states:SamplingStates", RUNNER_V2, "written",
        temperature="of rows that look back, for a step",
    ),
    *seams(
        "vllm.v1.worker.gpu.sample.states:SamplingStates", RUNNER_V2, "copied",
        apply_staged_writes="a tensor is replaced where it would be copied into",
    ),
    *seams(
        "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor", RUNNER_V2, "written",
        gpu="replaced for a step", np="put back after it",
    ),
    *seams(
        "vllm.v1.worker.gpu.input_batch:InputBatch", RUNNER_V2, "read",
        req_ids="the rows", idx_mapping="slots of the rows", idx_mapping_np="slots of the rows",
        query_start_loc_np="where the rows' tokens begin",
        seq_lens_cpu_upper_bound="rows that sample", prefill_len_np="rows that sample",
    ),
)  # fmt: skip

_STEP = (
    *seams(
        SCHEDULER_OUTPUT, GUIDANCE, "read",
        finished_req_ids="groups that end", scheduled_new_reqs="groups that begin",
        scheduled_cached_reqs="groups that come back",
    ),
    *seams(
        "vllm.v1.core.sched.output:NewRequestData", GUIDANCE, "read",
        sampling_params="the order of the scheduler", req_id="who begins",
    ),
    *seams(
        "vllm.v1.core.sched.output:NewRequestData", READER, "read",
        req_id="who begins", prompt_token_ids="the scored tokens",
        num_computed_tokens="where its part of the step begins",
    ),
    *seams(
        "vllm.v1.core.sched.output:CachedRequestData", READER, "read",
        req_ids="the rows", num_computed_tokens="where their part of the step begins",
    ),
    *seams(
        "vllm.v1.core.sched.output:NewRequestData", PIPELINE, "read",
        sampling_params="whether it forbids tokens", prompt_token_ids="length of a prompt",
        prefill_token_ids="known tokens (V2)",
    ),
    *seams(
        "vllm.sampling_params:SamplingParams", DROPPED, "read",
        structured_outputs="forbids tokens", allowed_token_ids="forbids tokens",
        bad_words="forbids tokens", min_tokens="forbids tokens",
    ),
    *seams(
        "vllm.v1.core.sched.output:CachedRequestData", GUIDANCE, "read",
        resumed_req_ids="who was preempted", num_output_tokens="known tokens", req_ids="the rows",
    ),
    *seams(
        "vllm.v1.outputs:AsyncModelRunnerOutput", REPORT, "overridden",
        get_output="adds the report",
    ),
)  # fmt: skip

_MODELS = (
    *seams(
        LOADER, LOADING, "overridden",
        __init__="makes the loader of the served model",
        download_model="passed on", load_weights="passed on",
        load_model="the served model, then its amateurs and its store",
    ),
    *seams(
        "vllm.model_executor.model_loader.default_loader:DefaultModelLoader", LOADING, "called",
        get_all_weights="``reload_weights`` asks every loader for it",
    ),
    *seams(
        "vllm.config.vllm:VllmConfig", LOADING, "written",
        load_config="of the served model's own loader",
    ),
    *seams(
        f"{MODEL}:VllmModel", LOADING, "overridden",
        forward="amateurs run beside; states side by side",
    ),
    *seams(
        f"{MODEL}:VllmModelForTextGeneration", LOADING, "overridden",
        compute_logits="of the served model's states",
    ),
    *seams(f"{MODEL}:VllmModel", STORE, "overridden", forward="its states are stored"),
    *seams(
        f"{HIDDEN}:CacheOnlyAttentionLayer", STORE, "overridden",
        get_attn_backend="ours", bind_kv_cache="makes room for the log-sum-exps",
    ),
    *seams(f"{HIDDEN}:CacheOnlyAttentionBackend", STORE, "overridden", get_builder_cls="ours"),
    *seams(
        f"{HIDDEN}:CacheOnlyAttentionMetadataBuilder", STORE, "overridden",
        build="tells the store of a step before its forward",
        get_cudagraph_support="any batch may replay a full graph",
    ),
    *seams(
        f"{HIDDEN}:CacheOnlyAttentionMetadataBuilder", STORE, "read", vllm_config="finds the store",
    ),
    *seams(
        f"{HIDDEN}:CacheOnlyAttentionLayer", STORE, "read",
        kv_cache="stored states", kv_cache_torch_dtype="their dtype", block_size="their blocks",
        head_size="their width",
    ),
    *seams(
        "vllm.config.compilation:CompilationConfig", STORE, "read",
        static_forward_context="layers by name",
    ),
    *seams(
        "vllm.v1.attention.backend:CommonAttentionMetadata", STORE, "read",
        seq_lens="lengths of the rows", block_table_tensor="their blocks",
        slot_mapping="slots that are written",
    ),
    *seams(
        "vllm.model_executor.layers.logits_processor:LogitsProcessor", HEAD, "read",
        scale="of the logits",
    ),
    *seams(
        "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase", DROP, "written",
        impl="tensors of the served model's", kv_cache="none until vLLM binds one",
    ),
)  # fmt: skip

WORKER_SEAMS: tuple[Seam, ...] = (*_WORKER, *_RANKS, *_V1, *_LOOKUP, *_V2, *_STEP, *_MODELS)
