"""The store of hidden states beside CUDA graphs, as far as a CPU can show it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from vllm.config import CompilationConfig, CUDAGraphMode, VllmConfig, set_current_vllm_config
from vllm.config.compilation import CompilationMode
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.attn_utils import get_attn_cg_support
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.utils import AttentionGroup

from divserve.engine.models.hidden_store import LAYER, HiddenStore, attach, store_of

CPU = torch.device("cpu")
HIDDEN, BLOCKS, BLOCK = 8, 6, 4
MODES = [
    (CompilationMode.VLLM_COMPILE, CUDAGraphMode.FULL_AND_PIECEWISE),
    (CompilationMode.VLLM_COMPILE, CUDAGraphMode.FULL),
    (CompilationMode.NONE, CUDAGraphMode.FULL),
    (CompilationMode.NONE, CUDAGraphMode.FULL_DECODE_ONLY),
]


class Model(nn.Module):
    """Its hidden states are what it is given."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states


class Attached:
    """A model with a store, and vLLM's group of its layer."""

    def __init__(self) -> None:
        self.config = VllmConfig()
        self.config.cache_config.block_size = BLOCK
        model_config: Any = SimpleNamespace(dtype=torch.float32)
        self.config.model_config = model_config
        self.model = Model()
        attach(self.model, self.config, HIDDEN)
        store = store_of(self.model)
        assert store is not None
        self.store: HiddenStore = store
        self.layer: Any = self.config.compilation_config.static_forward_context[LAYER]
        self.spec = self.layer.get_kv_cache_spec(self.config)
        self.group = AttentionGroup(self.layer.get_attn_backend(), [LAYER], self.spec, 0)
        self.group.create_metadata_builders(self.config, CPU, None)


@pytest.fixture
def attached() -> Attached:
    return Attached()


@pytest.mark.parametrize(("compiled", "mode"), MODES)
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_graphs_stay_full(
    attached: Attached, runner: str, compiled: CompilationMode, mode: CUDAGraphMode
) -> None:
    """The mode that vLLM resolves for a model whose other layers support every graph."""
    compilation = CompilationConfig(mode=compiled, cudagraph_mode=mode)
    compilation.set_splitting_ops_for_v1(all2all_backend="", data_parallel_size=1)
    if runner == "V2":
        support = get_attn_cg_support([[attached.group]], attached.config)
        compilation.resolve_cudagraph_mode_and_sizes(
            support.min_cg_support, support.min_cg_attn_backend, use_v2_model_runner=True
        )
    else:
        any_runner: Any = SimpleNamespace(
            vllm_config=attached.config,
            compilation_config=compilation,
            uniform_decode_query_len=1,
            kv_cache_config=None,
            max_num_reqs=4,
            cudagraph_dispatcher=Mock(),
            speculative_config=None,
        )
        kv_group: Any = SimpleNamespace(kv_cache_spec=attached.spec)
        GPUModelRunner._check_and_update_cudagraph_mode(
            any_runner, [{attached.layer.get_attn_backend()}], [kv_group]
        )
    assert compilation.cudagraph_mode == mode


def metadata(slots: torch.Tensor) -> Any:
    """Of two rows, one of which is padding."""
    return SimpleNamespace(
        seq_lens=torch.tensor([3, 0], dtype=torch.int32),
        block_table_tensor=torch.tensor([[2, 1], [0, 0]], dtype=torch.int32),
        slot_mapping=slots,
        causal=True,
    )


def test_a_replay_reads_the_slots_of_its_own_step(attached: Attached) -> None:
    """In one buffer, as both runners keep it: what the forward was given at capture is filled anew.

    Slots of −1 are those of the capture and of padded tokens: they change no block of a request.
    """
    cache = torch.zeros(BLOCKS, 1, BLOCK, HIDDEN)
    attached.layer.bind_kv_cache(cache)
    store, builder = attached.store, attached.group.get_metadata_builder()
    memory = store.lse.data_ptr()
    store.lse.zero_()
    buffer = torch.full((4,), -1)
    states = torch.zeros(4, HIDDEN)
    with set_current_vllm_config(attached.config):
        built = builder.build_for_cudagraph_capture(metadata(buffer))
    assert built.slot_mapping.data_ptr() == buffer.data_ptr()
    assert store.lse[:-1].isfinite().all()

    def replay() -> None:
        with set_forward_context(None, attached.config, slot_mapping={LAYER: buffer}):
            attached.model(states)

    replay()
    assert not cache[1:].any()
    buffer[:3] = torch.tensor([8, 9, 4])
    states += torch.arange(1.0, 5)[:, None]
    builder.build(0, metadata(buffer))
    replay()
    assert cache[[2, 2, 1], 0, [0, 1, 0], 0].tolist() == [1, 2, 3]
    assert not cache[3:].any()
    unknown = store.lse.isnan().nonzero()[:, 0].tolist()
    assert unknown == [4, 8, 9, BLOCKS * BLOCK]
    store.sampled(torch.tensor([0]), torch.tensor([0.5]))
    assert float(store.lse[10]) == 0.5
    assert store.lse.data_ptr() == memory


def test_a_new_cache_has_new_log_sum_exps(attached: Attached) -> None:
    """vLLM binds a small cache to profile graphs, takes it away, and binds the one for good."""
    store = attached.store
    attached.layer.bind_kv_cache(torch.zeros(2, 1, BLOCK, HIDDEN))
    store.lse.zero_()
    attached.layer.kv_cache = torch.tensor([])
    store.begin(metadata(torch.tensor([5, -1])))
    assert store.lse.isfinite().all()
    attached.layer.bind_kv_cache(torch.zeros(BLOCKS, 1, BLOCK, HIDDEN))
    assert store.lse.shape == (BLOCKS * BLOCK + 1,)
    assert store.lse.isnan().all()
