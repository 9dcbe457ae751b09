"""What is compiled before a server is ready: all that it needs, for every GPU, in parallel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from divserve_kernels import (
    ahead,
    backends,
    candidates_triton,
    history_triton,
    selfcheck,
    side_row,
    triton_backend,
    triton_launch,
)
from divserve_kernels.ahead import Ahead, Job
from divserve_kernels.selfcheck import Kind, States
from divserve_kernels.triton_launch import Gpu, compiling_for
from tests.kernels.cases import CPU, MIX, streams_of
from tests.support.cubins import resources

H100 = Gpu(90, 132)
PLAIN = [program for program in MIX if program.top_p >= 1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Triton."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jobs_of(vocab: int, *kinds: Kind, states: States | None = None) -> list[Job]:
    """The jobs of a server on an H100."""
    found: list[Job] = []
    with pytest.MonkeyPatch.context() as patch:
        back_end = backends.BackEnd("triton", triton_backend.guide, "a test")
        patch.setattr(backends, "choose", lambda _: back_end)
        patch.setattr(Gpu, "current", lambda _: H100)
        patch.setattr(ahead, "Ahead", lambda jobs, _: found.extend(jobs))
        selfcheck.compile_ahead(torch.device("cuda"), vocab, kinds, states)
    return found


@contextmanager
def keys(found: set[tuple[str, str]]) -> Iterator[None]:
    """Collects the names and keys of kernels that Triton would compile, and compiles none."""

    def note(key: str, fn: object, **_: object) -> bool:
        found.add((fn.name, key))  # type: ignore[attr-defined]
        return True

    with pytest.MonkeyPatch.context() as patch, compiling_for(H100):
        patch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
        yield


def expected(vocab: int, *kinds: Kind) -> set[tuple[str, str]]:
    """The keys of all that is compiled when a server starts."""
    found: set[tuple[str, str]] = set()
    with keys(found):
        for job in jobs_of(vocab, *kinds):
            triton_backend.compile_variant(**job.options)
    return found


def logits_of(rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """As vLLM makes them: a part of rows that are padded to multiples of 64."""
    return torch.zeros(rows, -(-vocab // 64) * 64, dtype=dtype)[:, :vocab]


@pytest.mark.parametrize("way", ["one launch", "phased"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1200, 1271, 12289, 49152, 151936, 152064 - 7])
def test_no_request_waits_for_a_compilation(
    vocab: int, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever varies in a running server, Triton looks for a kernel that it has."""
    if way == "phased":
        monkeypatch.setenv("DIVSERVE_TRITON", "phased")
    alone: set[tuple[str, str]] = set()
    compared: set[tuple[str, str]] = set()
    for rows, programs in ((2, PLAIN[:1]), (40, MIX), (19, PLAIN[:3]), (1, PLAIN[:1])):
        logits = logits_of(rows, vocab, dtype)
        out = logits.float() if dtype != torch.float32 else logits
        count = len(programs)
        guides = range(count, 2 * count) if rows > 1 else None
        beside = [side_row(i) for i in range(count)]
        amateurs = logits_of(2 * count, vocab, dtype)
        for found, side, second, third in (
            (alone, None, guides, None),
            (alone, torch.zeros(8, vocab), guides, beside),
            (compared, amateurs, beside, None),
            (compared, torch.cat((amateurs, amateurs)), beside, beside),
        ):
            streams = streams_of(programs, range(count), second, third)
            with keys(found):
                triton_backend.guide(logits, streams, side, out)
                # Addresses of indices that are not aligned; a row with whatever stride.
                part = streams.part(count - 1, count)
                triton_backend.guide(logits, part, side, out)
                odd = torch.zeros(vocab + 1).as_strided((1, vocab), (vocab + 1, 1))
                triton_backend.guide(odd.to(dtype), part, side, odd)
    assert alone
    assert alone <= expected(vocab, Kind(dtype))
    assert compared <= expected(vocab, Kind(dtype, dtype))


def test_a_short_amateur_is_compiled_too() -> None:
    """Its vocabulary is no multiple of 16, that of the served model is."""
    found: set[tuple[str, str]] = set()
    vocab, short = 49152, 49001
    with keys(found):
        logits = torch.zeros(4, vocab, dtype=torch.bfloat16)
        streams = streams_of(PLAIN[:2], [0, 2], [side_row(0), side_row(1)])
        triton_backend.guide(logits, streams, logits[:, :short], logits.float())
    bfloat16 = torch.bfloat16
    assert found <= expected(vocab, Kind(bfloat16, bfloat16, short))
    assert not found & expected(vocab, Kind(bfloat16))


def test_servers_share_kernels() -> None:
    """A variant is compiled once for all vocabularies of as many segments, if they are aligned."""
    kinds = Kind(torch.bfloat16), Kind(torch.bfloat16, torch.bfloat16)
    assert jobs_of(151936, *kinds) == jobs_of(152064, *kinds)
    assert expected(151936, *kinds) == expected(152064, *kinds)
    # With float32 models, amateurs' logits are like grounding vectors.
    marks = {job.mark(H100) for job in jobs_of(512, Kind(torch.float32, torch.float32))}
    assert marks == {job.mark(H100) for job in jobs_of(512, Kind(torch.float32))}
    assert marks != {job.mark(Gpu(80, 108)) for job in jobs_of(512, Kind(torch.float32))}


def test_one_variant_compiles(cache: Path) -> None:
    """In a process of its own, from which this one finds it."""
    (job,) = (job for job in jobs_of(49152, Kind(torch.bfloat16)) if not job.options["nucleus"])
    started = Ahead([job, job], H100)
    assert started.missing == 1
    started.wait()
    (kernel,) = resources(cache)
    assert (kernel.name, kernel.registers, kernel.stack) == ("_segments", 128, 0)
    hits: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        note = lambda cache_hit, **_: hits.append(cache_hit)  # noqa: E731
        patch.setattr(triton.knobs.compilation, "listener", note)
        job.run(H100)
    assert hits == [True]
    assert Ahead([job], H100).missing == 0


def test_look_back_compiles(cache: Path) -> None:
    """And a server's calls, whatever its block tables and rows, find what has been compiled."""
    jobs = jobs_of(512, states=States(16, 576, torch.bfloat16))
    nearest, likeliest = jobs
    Ahead(jobs, H100).wait()
    assert all(job.mark(H100).exists() for job in jobs)
    kernels = {kernel.name: kernel for kernel in resources(cache)}
    assert kernels.keys() == {"_search", "_merge", "_rank_tile", "_rank_row"}
    assert all(kernel.registers <= 255 for kernel in kernels.values())
    assert kernels["_search"].stack == kernels["_rank_tile"].stack == 0

    at_start: set[tuple[str, str]] = set()
    with keys(at_start):
        history_triton.compile_variant(**nearest.options)
        candidates_triton.compile_variant(**likeliest.options)
    found: set[tuple[str, str]] = set()
    # [blocks, heads, block, hidden] as in vLLM's cache, of which there is one head.
    states = torch.zeros(5, 1, 16, 576, dtype=torch.bfloat16)[:, 0]
    for blocks, count, first in ((128, 8, 0), (65, 1, 1), (1, 3, 0), (127, 16, 1)):
        ends = torch.zeros(first + count, dtype=torch.int32)[first:]
        rows, tables = torch.zeros(count).long(), torch.zeros(3, blocks, dtype=torch.int32)
        mu, entropy = torch.zeros(count, 576), torch.zeros(first + count)[first:]
        with keys(found):
            history_triton.nearest(
                states, torch.zeros(81), tables, rows, ends, ends, mu, entropy, 16 * blocks
            )
            wanted = torch.zeros(first + count, dtype=torch.bool)[first:]
            candidates_triton.likeliest(torch.zeros(count, 512), wanted, 1 + 4 * count)
    assert found == at_start


@pytest.mark.long
@pytest.mark.parametrize("way", ["one launch", "phased"])
def test_all_variants_compile(cache: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an A100, an H100 and a B200; the registers of all threads fit, hardly any spill."""
    if way == "phased":
        monkeypatch.setenv("DIVSERVE_TRITON", "phased")
    bfloat16 = torch.bfloat16
    kinds = Kind(torch.float32), Kind(bfloat16), Kind(bfloat16, bfloat16)
    vocabularies = [12288 * segments for segments in (1, 2, 4, 8, 16)]
    if way == "phased":
        vocabularies = vocabularies[-1:]
    for gpu in (Gpu(80, 108), H100, Gpu(100, 148)):
        sizes = vocabularies if gpu == H100 else [vocabularies[-1], 12287]
        jobs = [job for vocab in sizes for job in jobs_of(vocab, *kinds)]
        started = Ahead(jobs, gpu)
        assert started.missing == len(jobs)
        started.wait()
        assert not Ahead(jobs, gpu).missing
    kernels = resources(cache)
    names = {"_segments"} if way == "one launch" else {"_segments", "_nuclei"}
    assert {kernel.name for kernel in kernels} == names
    assert {kernel.arch for kernel in kernels} == {80, 90, 100}
    for kernel in kernels:
        # 65,536 registers, 512 threads.
        assert kernel.registers <= (128 if kernel.warps == 16 else 255), kernel
        assert kernel.stack <= 256, kernel
    figures = ((k.stack, k.registers, k.name, k.arch) for k in kernels)
    print(f"most bytes of stack: {max(figures)} of {len(kernels)} kernels")  # noqa: T201


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
def test_the_server_finds_what_was_compiled_ahead(cache: Path) -> None:
    """The stand-in for the driver gives the same keys as the driver."""
    device = torch.device("cuda")
    started = selfcheck.compile_ahead(device, 49152)
    assert started is not None
    assert started.missing
    started.wait()
    hits: list[bool] = []
    for kernel in (triton_backend._segments, triton_backend._nuclei):
        kernel.device_caches.clear()
    with pytest.MonkeyPatch.context() as patch:
        note = lambda cache_hit, **_: hits.append(cache_hit)  # noqa: E731
        patch.setattr(triton.knobs.compilation, "listener", note)
        assert selfcheck.check(device, 49152).passed
    assert hits
    assert all(hits)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module whose variants take half a second or fail; returns the file of what it has done."""
    (tmp_path / "fake_kernels.py").write_text(
        "import time\n"
        "def compile_variant(file, fails):\n"
        "    time.sleep(0.5)\n"
        "    assert not fails\n"
        "    print('done', file=open(file, 'a'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "done"


def test_one_that_fails_does_not_stop_the_others(cache: Path, fake: Path) -> None:
    """Nor the server, which then compiles it itself."""
    jobs = [Job("fake_kernels", {"file": str(fake), "fails": fails}) for fails in (True, False)]
    Ahead(jobs, H100).wait()
    assert fake.read_text() == "done\n"
    assert [job.mark(H100).exists() for job in jobs] == [False, True]


def test_servers_that_start_together_compile_once(cache: Path, fake: Path) -> None:
    jobs = [Job("fake_kernels", {"file": str(fake), "fails": False})]
    first, second = Ahead(jobs, H100), Ahead(jobs, H100)
    assert first.missing == second.missing == 1
    first.wait()
    assert second.wait() < 0.5
    assert fake.read_text() == "done\n"


def test_one_that_hangs_is_ended(cache: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LIMIT", 0.1)
    jobs = [Job("fake_kernels", {"file": str(fake), "fails": False})]
    start = time.perf_counter()
    Ahead(jobs, H100).wait()
    assert time.perf_counter() - start < 2
    assert not fake.exists()


def test_without_a_cache_the_server_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    started = Ahead([Job("fake_kernels", {})], H100)
    assert started.missing == 1
    assert started.wait() == 0


def test_a_context_ends_as_it_began() -> None:
    before = triton.runtime.driver._active
    with compiling_for(H100):
        assert triton_launch.multiprocessors(torch.device("cuda")) == 132
        assert triton.runtime.driver.active.get_current_target().arch == 90
    assert triton.runtime.driver._active is before


def test_a_worker_knows_its_store_of_hidden_states() -> None:
    from divserve.engine.models.loader import load_options
    from divserve.engine.worker import worker

    model = SimpleNamespace(dtype=torch.bfloat16, get_hidden_size=lambda: 576)
    load = SimpleNamespace(load_format="auto", model_loader_extra_config={})
    config = SimpleNamespace(load_config=load, cache_config=SimpleNamespace(block_size=16))
    server: Any = SimpleNamespace(model_config=model, vllm_config=config)
    assert worker._states(server) is None
    for stored, states in ((True, States(16, 576, torch.bfloat16)), (False, None)):
        config.load_config = SimpleNamespace(**load_options(load, {}, hidden_states=stored))
        assert worker._states(server) == states


def test_a_worker_knows_the_kinds_of_its_tensors() -> None:
    from divserve.engine.models.loader import load_options
    from divserve.engine.worker import worker

    def kinds(amateurs: dict[str, str], vocab: int | None = None) -> tuple[Kind, ...]:
        load = SimpleNamespace(load_format="auto", model_loader_extra_config={})
        extras = SimpleNamespace(**load_options(load, amateurs, hidden_states=True))
        model = SimpleNamespace(head_dtype=torch.bfloat16)
        config = SimpleNamespace(load_config=extras)
        return worker._kinds(SimpleNamespace(model_config=model, vllm_config=config), vocab)

    alone = Kind(torch.bfloat16)
    assert kinds({}) == (alone,)
    assert kinds({"amateur": "drop:2"}) == (alone, Kind(torch.bfloat16, torch.bfloat16))
    assert kinds({"amateur": "drop:2"}, 999)[1].amateurs_vocab == 999


@pytest.mark.parametrize("kind", [Kind(torch.float32, torch.float32, 1000), Kind(torch.bfloat16)])
def test_the_check_passes_beside_amateurs(kind: Kind) -> None:
    """Their logits in a tensor of their own, with a shorter vocabulary."""
    threads = torch.get_num_threads()
    assert selfcheck.check(CPU, kinds=(kind,)).passed
    assert torch.get_num_threads() == threads


def test_the_log_says_so_before_a_long_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divserve.engine.worker import worker
    from divserve_kernels import numba_jit

    lines: list[str] = []
    note = lambda line, *values: lines.append(line % values)  # noqa: E731
    monkeypatch.setattr(worker.logger, "info", note)
    started: Any = SimpleNamespace(missing=2, wait=lambda: 1.5)
    monkeypatch.setattr(worker, "compile_ahead", lambda *_: started)
    assert worker._compile(CPU, 512, (), None) is started
    assert "compiling 2 variants" in lines.pop()
    worker._wait(started)
    assert "compiled 1.5 s after the model was loaded" in lines.pop()
    monkeypatch.setattr(numba_jit, "_FOLDER", str(tmp_path))
    worker._check_kernels(CPU, 512)
    assert ["about 10 s" in line for line in lines] == [True, False]
    (tmp_path / "function.nbi").touch()
    worker._check_kernels(CPU, 512)
    assert "about 10 s" not in lines[2]
