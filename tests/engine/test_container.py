"""Limits of control groups, and how the server applies them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from divserve.startup import container, cpu

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups without limits; this process is in a/b."""
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    monkeypatch.setattr(container, "OWN", own)
    monkeypatch.setattr(container, "ROOT", tmp_path / "groups")
    return tmp_path / "groups"


def limit(folder: Path, cpu_max: str, memory: str) -> None:
    (folder / "cpu.max").write_text(f"{cpu_max}\n")
    (folder / "memory.max").write_text(f"{memory}\n")


def test_no_limits(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (container.core_limit(), container.memory_limit()) == (None, None)
    limit(root / "a", "max 100000", "max")
    assert (container.core_limit(), container.memory_limit()) == (None, None)
    monkeypatch.setattr(container, "OWN", root / "nothing")
    assert (container.core_limit(), container.memory_limit()) == (None, None)
    (root / "old").write_text("4:memory:/a\n")
    monkeypatch.setattr(container, "OWN", root / "old")
    assert (container.core_limit(), container.memory_limit()) == (None, None)


def test_the_tightest_counts(root: Path) -> None:
    limit(root / "a" / "b", "800000 100000", str(4 * GIB))
    limit(root / "a", "350000 100000", str(16 * GIB))
    assert (container.core_limit(), container.memory_limit()) == (3, 4 * GIB)
    limit(root, "50000 100000", str(2 * GIB))
    assert (container.core_limit(), container.memory_limit()) == (1, 2 * GIB)


def test_a_container_sees_its_own_group_as_the_root(root: Path) -> None:
    container.OWN.write_text("0::/\n")
    limit(root, "200000 100000", "max")
    assert (container.core_limit(), container.memory_limit()) == (2, None)


def test_threads_and_cache_follow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    limit(root, "200000 100000", str(16 * GIB))
    environment: dict[str, str] = {}
    cpu.environment_defaults(environment, None)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == "2"
    memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 16 * GIB)
    assert cpu.flag_defaults(None)["kv_cache_memory_bytes"] == max(memory // 8 // GIB, 1) * GIB
    limit(root, "400000 100000", str(GIB))
    environment = {}
    cpu.environment_defaults(environment, None)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,2,3"
    assert "OMP_NUM_THREADS" not in environment
    assert cpu.flag_defaults(None)["kv_cache_memory_bytes"] == GIB
