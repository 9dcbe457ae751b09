"""Start-up rejects by name what the seams do not support, before a model is loaded."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from vllm.lora.request import LoRARequest

from divserve.decoding import BASE, METHODS, Program, Spec, Stack
from divserve.engine.client.orders import check_adapters
from divserve.errors import InvalidRequest, StartupError
from divserve.startup import checks, container, cpu, engines, launch
from tests.engine.test_refused_modes import config
from tests.support.platform import cpu_only


def test_another_platform_is_refused() -> None:
    given = config(parallel_config__worker_cls="vllm.v1.worker.tpu_worker.TPUWorker")
    with pytest.raises(StartupError, match="TPUWorker"):
        engines.install(given)


def test_a_drafter_that_needs_a_package(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line instead of a traceback."""
    from vllm.config import speculative
    from vllm.engine.arg_utils import AsyncEngineArgs

    monkeypatch.setattr(speculative, "has_arctic_inference", lambda: False)
    args = AsyncEngineArgs(
        model=str(tiny), skip_tokenizer_init=True, speculative_config={"method": "suffix"}
    )
    with pytest.raises(StartupError, match=r"refuses .* `pip install arctic-inference==[\d.]+`"):
        engines.configured(args)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("stock", "worker"),
    [("cpu_worker.CPUWorker", "GuidedCPUWorker"), ("gpu_worker.Worker", "GuidedGPUWorker")],
    ids=["CPU", "GPU"],
)
def test_supported_modes_get_our_scheduler_and_worker(
    stock: str, worker: str, asynchronous: bool
) -> None:
    """The scheduler matches vLLM's choice of synchronous or asynchronous scheduling."""
    from divserve.engine.scheduler.scheduler import AsyncLockstepScheduler, LockstepScheduler

    given = config(
        scheduler_config__async_scheduling=asynchronous,
        parallel_config__worker_cls=f"vllm.v1.worker.{stock}",
    )
    engines.install(given)
    expected = AsyncLockstepScheduler if asynchronous else LockstepScheduler
    assert given.scheduler_config.scheduler_cls is expected
    assert given.parallel_config.worker_cls == f"divserve.engine.worker.worker.{worker}"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--api-server-count", "2", "--small", "SMALL"], "--api-server-count"),
        (["--data-parallel-multi-port-external-lb"], "--data-parallel-multi-port-external-lb"),
        (["--headless", "--api-server-count", "0"], "--headless"),
        (["--scheduler-cls", "a.B"], "--scheduler-cls"),
        (["--worker-cls", "a.B"], "--worker-cls"),
        (["--speculative-config", "5"], "--speculative-config takes a JSON object"),
        (["--speculative-config", '"ngram"'], "--speculative-config takes a JSON object"),
        ([], "name a model"),
    ],
)
def test_flags_are_refused_by_name(
    flags: list[str], name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    argv = flags if name == "name a model" else [str(tiny), *flags]
    with pytest.raises(StartupError, match=name):
        launch.parse(argv)


def test_another_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.33.0")
    with pytest.raises(StartupError, match=r"needs vLLM 0\.32\.0, but vllm 0\.33\.0"):
        checks.check_version()


def test_missing_vllm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(StartupError, match="pip install"):
        checks.check_version()


@cpu_only("a GPU's defaults are vLLM's")
def test_users_flags_win_over_cpu_defaults(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    plain = launch.parse([str(tiny)])
    assert (plain.host, plain.dtype, plain.block_size) == ("127.0.0.1", "float32", 32)
    assert plain.max_model_len == 4096
    given = launch.parse(
        [str(tiny), "--dtype", "bfloat16", "--host", "0.0.0.0", "--max-model-len", "64"]
    )
    assert (given.dtype, given.host, given.max_model_len) == ("bfloat16", "0.0.0.0", 64)


def test_environment_defaults_leave_what_is_set(tiny: Path) -> None:
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "0", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "9"}
    cpu.environment_defaults(environment, str(tiny))
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0"
    assert environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "9"
    assert environment["HF_HUB_OFFLINE"] == "1"
    remote: dict[str, str] = {}
    cpu.environment_defaults(remote, "org/model")
    assert "HF_HUB_OFFLINE" not in remote
    assert remote["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "256"


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [(8, 1, "0,1,2,3,4,5,6,7"), (5, 2, "0,1|2,3,4"), (2, 2, "0|1"), (2, 4, "0|0|1|1")],
)
def test_each_rank_gets_cores_of_its_own(
    cores: int, ranks: int, binding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes one list per rank."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(container, "core_limit", lambda: None)
    environment: dict[str, str] = {}
    cpu.environment_defaults(environment, None)
    cpu.share_cores(environment, ranks)
    assert environment[cpu.BINDING] == binding
    given = {cpu.BINDING: "nobind"}
    cpu.share_cores(given, ranks)
    assert given == {cpu.BINDING: "nobind"}


@cpu_only("a GPU needs no cores")
@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        (["--data-parallel-size", "2"], 2),
        (["--data-parallel-size", "2", "--tensor-parallel-size", "2"], 4),
        (["--data-parallel-size", "4", "--data-parallel-rank", "1"], 1),
        (["--data-parallel-size", "4", "--data-parallel-size-local", "2"], 2),
    ],
)
def test_ranks_of_this_machine_share_its_cores(
    flags: list[str], ranks: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop(cpu.BINDING, None)
    monkeypatch.setattr(container, "core_limit", lambda: None)
    launch.parse([str(tiny), *flags])
    assert len(os.environ[cpu.BINDING].split("|")) == ranks


def test_a_grounding_text_beside_adapters_is_refused() -> None:
    spec = Stack(METHODS["vdgd"].model_validate({"method": "vdgd", "grounding": "a text"})).spec(
        1.0, [None], [5, 6]
    )
    check_adapters(spec, None, 0)
    with pytest.raises(InvalidRequest, match="--enable-lora") as refused:
        check_adapters(spec, None, 1)
    assert refused.value.code == "method_unavailable"
    check_adapters(replace(spec, grounding=[]), None, 1)


def test_a_request_that_needs_more_adapters_than_a_step_has_is_refused() -> None:
    """Else it would wait forever."""
    own = LoRARequest("own", 1, "path/of/own")
    spec = Spec(Program(), [[1], [2]], adapters=(("other", 2, "path/of/other"), BASE))
    check_adapters(spec, own, 2)
    check_adapters(spec, None, 1)
    with pytest.raises(InvalidRequest, match=r"need 2 LoRA adapters .* --max-loras 1") as refused:
        check_adapters(spec, own, 1)
    assert refused.value.param == "decoding.guide.model"
