"""Every mode that is refused at the start: by its name, with the reason of the tables."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.startup import checks, engines
from divserve.startup.amateur_drafts import DRAFTER
from divserve.startup.extras import Extras
from divserve.startup.refused import AMATEUR, ARGUMENTS, CONFIG, LOOK_BACK, Refusal

Changes = dict[str, Any]

ASKED: dict[str, Changes] = {
    "--headless with --api-server-count": {"headless": True, "api_server_count": 0},
    "--headless with --small": {"headless": True, "small": "SMALL"},
    "--distributed-executor-backend ray": {"distributed_executor_backend": "ray"},
    "--grpc": {"grpc": True},
    "--api-server-count above 1 with --small": {"api_server_count": 2, "small": "SMALL"},
    "--data-parallel-size above 1 with --small": {"data_parallel_size": 2, "small": "SMALL"},
    "--data-parallel-rank with --data-parallel-start-rank or --data-parallel-hybrid-lb": {
        "data_parallel_rank": 1,
        "data_parallel_start_rank": 2,
    },
    "--data-parallel-multi-port-external-lb": {"data_parallel_multi_port_external_lb": True},
    "--data-parallel-backend ray": {"data_parallel_backend": "ray"},
    "--enable-elastic-ep": {"enable_elastic_ep": True},
    "--enable-fault-tolerance": {"enable_fault_tolerance": True},
    "--distributed-executor-backend external_launcher": {
        "distributed_executor_backend": "external_launcher"
    },
    "--kv-transfer-config or --kv-offloading-size with --small": {
        "kv_offloading_size": 1.0,
        "small": "SMALL",
    },
    "--scheduler-cls": {"scheduler_cls": "a.B"},
    "--worker-cls": {"worker_cls": "a.B"},
    "VLLM_USE_RUST_FRONTEND": {"VLLM_USE_RUST_FRONTEND": "1"},
}
"""By the name of a mode: the arguments, or the variable of the environment, that ask for it."""


def connector(name: str, **extra: Any) -> Changes:
    """``--kv-transfer-config`` with this connector."""
    from vllm.config import KVTransferConfig

    asked = {"kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return {"kv_transfer_config": KVTransferConfig(**asked)}


def speculative(**changes: Any) -> Any:
    """``--speculative-config`` that nothing refuses, and changes."""
    return SimpleNamespace(**{"method": "ngram", "num_speculative_tokens": 128, **changes})


EXPERTS: Changes = {"model_config__is_moe": True, "parallel_config__data_parallel_size": 2}
CONFIGURED: dict[str, Changes] = {
    "--speculative-config with a method other than amateur, ngram and suffix": {
        "speculative_config": speculative(method="eagle3")
    },
    "--speculative-config with ngram_gpu and Model Runner V1": {
        "speculative_config": speculative(method="ngram_gpu")
    },
    "--speculative-config with pipelines, KV transfer or recurrent state": {
        "speculative_config": speculative(),
        "model_config__is_hybrid": True,
    },
    "--speculative-config with the method amateur and tensor or data parallelism, LoRA or "
    "Model Runner V2": {
        "speculative_config": speculative(method="custom_class", model=DRAFTER),
        "use_v2_model_runner": True,
    },
    "--speculative-config with num_speculative_tokens above 128": {
        "speculative_config": speculative(num_speculative_tokens=129)
    },
    "--speculative-config with --logits-processors": {
        "speculative_config": speculative(),
        "model_config__logits_processors": ["a:B"],
    },
    "ExampleConnector": connector("ExampleConnector"),
    "DecodeBenchConnector": connector("DecodeBenchConnector"),
    "ExampleHiddenStatesConnector": connector("ExampleHiddenStatesConnector"),
    "MoRIIOConnector": connector("MoRIIOConnector"),
    "LMCacheMPConnector (also --kv-offloading-backend lmcache)": connector("LMCacheMPConnector"),
    "HF3FSKVConnector": connector(
        "MultiConnector", connectors=[{"kv_connector": "HF3FSKVConnector"}]
    ),
    "FlexKVConnectorV1, HiSparseConnector, MooncakeConnector and MooncakeStoreConnector": connector(
        "MooncakeConnector"
    ),
    "--kv-transfer-config with windows, chunked attention or recurrent state": {
        **connector("OffloadingConnector"),
        "model_config__get_sliding_window": lambda: 4096,
    },
    "--kv-transfer-config with --enable-lora": {
        **connector("NixlConnector"),
        "lora_config": object(),
    },
    "--kv-transfer-config with pipeline or data parallelism": {
        **connector("LMCacheConnectorV1"),
        "parallel_config__data_parallel_size": 2,
    },
    "--ec-transfer-config": {"ec_transfer_config": object()},
    "--pipeline-parallel-size above 1 with --async-scheduling and Model Runner V1": {
        "parallel_config__pipeline_parallel_size": 2,
        "scheduler_config__async_scheduling": True,
    },
    "--decode-context-parallel-size above 1": {"parallel_config__decode_context_parallel_size": 2},
    "--prefill-context-parallel-size above 1": {
        "parallel_config__prefill_context_parallel_size": 2
    },
    "batch-sharded sampling": {"parallel_config__enable_batch_sharded_sampling": True},
    "--data-parallel-size above 1 with a mixture of experts on CPU": EXPERTS,
    "--data-parallel-external-lb with a dense model": {
        "parallel_config__data_parallel_size": 2,
        "parallel_config__data_parallel_external_lb": True,
    },
    "--enable-dbo and --ubatch-size": {"parallel_config__ubatch_size": 2},
    "--no-enable-chunked-prefill": {"scheduler_config__enable_chunked_prefill": False},
    "--max-num-seqs below 2": {"scheduler_config__max_num_seqs": 1},
    "--max-num-batched-tokens below --max-num-seqs": {
        "scheduler_config__max_num_batched_tokens": 4
    },
    "--kv-sharing-fast-prefill": {"cache_config__kv_sharing_fast_prefill": True},
    "--runner other than generate": {"model_config__runner_type": "pooling"},
    "encoder-decoder models": {"model_config__is_encoder_decoder": True},
}
WITH_LOOK_BACK: dict[str, Changes] = {
    "--speculative-config": {"speculative_config": object()},
    "--kv-transfer-config": connector("NixlConnector"),
    "--pipeline-parallel-size above 1": {"parallel_config__pipeline_parallel_size": 2},
    "--tensor-parallel-size above 1": {"parallel_config__tensor_parallel_size": 2},
    "--enable-lora": {"lora_config": object()},
    "--kv-cache-dtype other than auto": {"cache_config__cache_dtype": "fp8"},
    "--no-enable-prefix-caching": {"cache_config__enable_prefix_caching": False},
    "models with sliding-window layers": {"model_config__get_sliding_window": lambda: 4096},
    "models with chunked attention": {"model_config__attention_chunk_size": 8192},
    "--data-parallel-size above 1 with a mixture of experts": EXPERTS,
    "models with recurrent state (hybrid, Mamba)": {"model_config__is_hybrid": True},
    "multimodal models": {"model_config__is_multimodal_model": True},
}
WITH_AMATEUR: dict[str, Changes] = {
    "--kv-transfer-config": connector("NixlConnector"),
    "--data-parallel-size above 1 with a mixture of experts": EXPERTS,
    "--pipeline-parallel-size above 1": {"parallel_config__pipeline_parallel_size": 2},
    "multimodal models": {"model_config__is_multimodal_model": True},
    "--enable-prompt-embeds": {"model_config__enable_prompt_embeds": True},
    "--enable-lora with drop:N": {"lora_config": object()},
    "models with recurrent state (hybrid, Mamba)": {"model_config__is_attention_free": True},
}


def changed(parts: Changes, changes: Changes) -> Any:
    """The parts as one object; ``a__b`` of the changes is its ``a.b``."""
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            setattr(parts[section], field, value)
        else:
            parts[section] = value
    return SimpleNamespace(**parts)


def config(**changes: Any) -> Any:
    """A vLLM configuration that nothing refuses, as far as the tables look at it, and changes."""
    return changed(
        {
            "speculative_config": None,
            "kv_transfer_config": None,
            "ec_transfer_config": None,
            "lora_config": None,
            "device_config": SimpleNamespace(device_type="cpu"),
            "use_v2_model_runner": False,
            "cache_config": SimpleNamespace(
                kv_sharing_fast_prefill=False, cache_dtype="auto", enable_prefix_caching=True
            ),
            "model_config": SimpleNamespace(
                runner_type="generate",
                is_encoder_decoder=False,
                is_hybrid=False,
                is_attention_free=False,
                is_moe=False,
                is_multimodal_model=False,
                enable_prompt_embeds=False,
                attention_chunk_size=None,
                get_sliding_window=lambda: None,
                logits_processors=None,
            ),
            "parallel_config": SimpleNamespace(
                tensor_parallel_size=1,
                data_parallel_size=1,
                data_parallel_external_lb=False,
                pipeline_parallel_size=1,
                decode_context_parallel_size=1,
                prefill_context_parallel_size=1,
                enable_batch_sharded_sampling=False,
                enable_dbo=False,
                ubatch_size=0,
                worker_cls="vllm.v1.worker.cpu_worker.CPUWorker",
            ),
            "scheduler_config": SimpleNamespace(
                enable_chunked_prefill=True,
                max_num_seqs=8,
                max_num_batched_tokens=64,
                async_scheduling=False,
                scheduler_cls=None,
            ),
        },
        changes,
    )


def arguments(**changes: Any) -> Any:
    """Arguments that nothing refuses, as far as the table looks at them, and changes."""
    parts: Changes = {
        "kv_transfer_config": None, "kv_offloading_size": None, "speculative_config": None,
        "headless": False, "grpc": False, "api_server_count": None, "small": None,
        "data_parallel_size": 1, "data_parallel_multi_port_external_lb": False,
        "data_parallel_rank": None, "data_parallel_start_rank": None,
        "data_parallel_external_lb": False, "data_parallel_hybrid_lb": False,
        "data_parallel_backend": "mp",
        "enable_elastic_ep": False, "enable_fault_tolerance": False, "scheduler_cls": None,
        "worker_cls": "auto", "distributed_executor_backend": None,
    }  # fmt: skip
    return changed(parts, changes)


def said(table: tuple[Refusal, ...], name: str) -> str:
    """A pattern of what the message says about a mode."""
    return re.escape(next(f"{mode.name} ({mode.why})" for mode in table if mode.name == name))


@pytest.mark.parametrize(
    ("table", "tried"),
    [
        (ARGUMENTS, ASKED), (CONFIG, CONFIGURED), (LOOK_BACK, WITH_LOOK_BACK),
        (AMATEUR, WITH_AMATEUR),
    ],
)  # fmt: skip
def test_every_mode_is_tried(table: tuple[Refusal, ...], tried: dict[str, Changes]) -> None:
    assert [mode.name for mode in table] == list(tried)


@pytest.mark.parametrize("name", ASKED)
def test_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    changes = ASKED[name]
    if name.isupper():
        os.environ.update(changes)
        changes = {}
    with pytest.raises(StartupError, match=f"not supported by divserve: {said(ARGUMENTS, name)}"):
        checks.check_arguments(arguments(**changes))


@pytest.mark.parametrize("name", CONFIGURED)
def test_configurations(name: str) -> None:
    with pytest.raises(StartupError, match=f"not supported by divserve: {said(CONFIG, name)}"):
        engines.install(config(**CONFIGURED[name]))


@pytest.mark.parametrize("method", ["draft_model", "eagle", "mtp", "medusa", "mlp_speculator"])
def test_drafters(method: str) -> None:
    name = "--speculative-config with a method other than amateur, ngram and suffix"
    with pytest.raises(StartupError, match=said(CONFIG, name)):
        engines.install(config(speculative_config=speculative(method=method)))


@pytest.mark.parametrize("name", WITH_LOOK_BACK)
def test_look_back(name: str) -> None:
    message = f"not supported with --look-back: {said(LOOK_BACK, name)}"
    with pytest.raises(StartupError, match=message):
        Extras(look_back=True).install(config(**WITH_LOOK_BACK[name]))


@pytest.mark.parametrize("name", WITH_AMATEUR)
def test_amateurs(name: str) -> None:
    message = f"not supported with --amateur: {said(AMATEUR, name)}"
    with pytest.raises(StartupError, match=message):
        Extras({"amateur": "drop:1"}).install(config(**WITH_AMATEUR[name]))


@pytest.mark.parametrize("given", [[1], 5, "ngram"])
def test_speculation_takes_an_object(given: Any) -> None:
    """vLLM looks into it without asking, which ends in a traceback."""
    with pytest.raises(StartupError, match="--speculative-config takes a JSON object"):
        checks.check_arguments(arguments(speculative_config=given))


def test_nothing_else_is_refused() -> None:
    checks.check_arguments(arguments())
    checks.check_config(config())
    checks.check_look_back(config())


def test_all_refused_modes_are_named_at_once() -> None:
    changes = CONFIGURED["--max-num-seqs below 2"] | CONFIGURED["--ec-transfer-config"]
    with pytest.raises(StartupError, match=r"--ec-transfer-config \(.*\), --max-num-seqs below 2"):
        checks.check_config(config(**changes))


@pytest.mark.parametrize(
    "given",
    [
        connector("LMCacheConnectorV1"),
        connector("NixlConnector"),
        connector("OffloadingConnector"),
        connector("SimpleCPUOffloadConnector"),
        connector("MultiConnector", connectors=[{"kv_connector": "NixlConnector"}]),
    ],
    ids=lambda given: given["kv_transfer_config"].kv_connector,
)
def test_connectors_that_keep_to_what_vllm_takes(given: Changes) -> None:
    checks.check_config(config(**given))


def test_ones_own_connector_may_have_the_name_of_vllms() -> None:
    given = connector("ExampleConnector")
    given["kv_transfer_config"].kv_connector_module_path = "mine"
    checks.check_config(config(**given))
