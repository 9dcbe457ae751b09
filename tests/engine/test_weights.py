"""Weights that change under a running engine: the amateurs stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from vllm.v1.worker.gpu_worker import Worker

from divserve.engine.models.asleep import AmateursAsleep
from divserve.engine.models.drop import kept_layers
from divserve.engine.models.loader import ATTRIBUTE, Amateurs, amateur_tensors
from divserve.engine.worker.worker import GuidedGPUWorker
from tests.engine.cases import Case, mismatches
from tests.engine.test_amateurs import TOKENS, run
from tests.support.engine import Engine, order
from tests.support.hf import Reference
from tests.support.hf_models import Trio, without_layers
from tests.support.models import TINY_VOCAB, make_tiny

LAYERS, DROPPED = 6, 2
METHODS = ("proxy_tuning", "dexperts")


def expected(served: Path, tuned: Path, method: str) -> Case:
    """What a method makes of a served model, its layers without some, and a tuned model."""
    left_out = sorted(set(range(LAYERS)) - set(kept_layers(LAYERS, DROPPED)))
    load = AutoModelForCausalLM.from_pretrained
    other = load(tuned, dtype=torch.float32).eval()
    trio = Trio(Reference(served), without_layers(served, left_out), other)
    prompt = list(range(20, 70))
    answer = trio.greedy(prompt, {"method": method}, TOKENS)
    return Case(prompt, None, method, TOKENS, answer)


def test_reloaded_weights(tmp_path: Path) -> None:
    """vLLM's ``reload_weights``: drop:N follows the served model, a model by name stays."""
    before, after = (make_tiny(tmp_path / str(i), layers=LAYERS, seed=i) for i in (0, 5))
    tuned = make_tiny(tmp_path / "tuned", vocab_size=TINY_VOCAB + 8, seed=2)
    engine = Engine(
        before, amateurs={"amateur": f"drop:{DROPPED}", "tuned": str(tuned)}, look_back=True
    )
    for path in (before, after, before):
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        engine.llm.reset_prefix_cache()
        cases = [expected(path, tuned, method) for method in METHODS]
        outputs = run(engine, [(case, order(case.method, None)) for case in cases])
        assert mismatches(cases, [list(o.outputs[0].token_ids) for o in outputs]) == []
    with pytest.raises(ValueError, match="load_config cannot be changed"):
        engine.llm.collective_rpc("update_config", args=({"load_config": {"load_format": "auto"}},))
    engine.close()


def model_with_amateurs() -> tuple[Any, Any]:
    """A served model, and its amateur with other weights; another amateur shares its weights."""
    served: Any = nn.BatchNorm1d(3)
    shared, other = nn.Sequential(served), nn.BatchNorm1d(4)
    setattr(served, ATTRIBUTE, Amateurs.__new__(Amateurs))
    getattr(served, ATTRIBUTE).models = [shared, other]
    return served, other


@pytest.mark.parametrize("level", [1, 2])
def test_asleep(level: int) -> None:
    """Level 2 discards all weights; those of the amateurs come back with the tag "weights"."""
    served, other = model_with_amateurs()
    assert len(amateur_tensors(served)) == len([*other.parameters(), *other.buffers()])
    before = {name: x.clone() for name, x in other.state_dict().items()}
    asleep = AmateursAsleep()
    asleep.sleep(served, level)
    with torch.no_grad():
        for tensor in (*served.parameters(), *other.parameters(), *other.buffers()):
            tensor.fill_(7)
    asleep.sleep(served, level)
    asleep.wake_up(["kv_cache"])
    assert float(other.weight.detach().min()) == 7
    asleep.wake_up(["weights"])
    back = {name: bool(torch.equal(x, before[name])) for name, x in other.state_dict().items()}
    assert set(back.values()) == {level == 2}
    # The served model's are loaded again by whoever has put it to sleep.
    assert float(served.weight.detach().min()) == 7
    with torch.no_grad():
        other.weight.fill_(9)
    asleep.wake_up(None)
    assert float(other.weight.detach().min()) == 9


def test_the_worker_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around vLLM's own sleep, which needs a GPU and is replaced here."""
    served, other = model_with_amateurs()
    worker: Any = object.__new__(GuidedGPUWorker)
    worker._amateurs = AmateursAsleep()
    monkeypatch.setattr(Worker, "get_model", lambda self: served)
    monkeypatch.setattr(Worker, "sleep", lambda self, level: other.weight.data.fill_(7))
    monkeypatch.setattr(Worker, "wake_up", lambda self, tags: other.weight.data.fill_(8))
    before = other.weight.detach().clone()
    worker.sleep(2)
    worker.wake_up()
    assert torch.equal(other.weight, before)


def test_without_amateurs() -> None:
    assert amateur_tensors(nn.Linear(2, 2)) == []
