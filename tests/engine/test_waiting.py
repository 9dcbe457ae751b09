"""On a GPU our code waits for nothing in a step, also beside CUDA graphs; how that is watched."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from divserve.engine.models.hidden_store import HiddenStore
from divserve.engine.worker.guidance import GuidanceStages
from tests.support.engine import Engine, order, random_prompt, stacked
from tests.support.hf import Reference
from tests.support.look_back import problems, recorded
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.waiting import WAITED, SetMode, forbidden, watch

TOKENS = 20
METHODS: dict[type, tuple[str, ...]] = {
    GuidanceStages: ("observe", "place", "read_texts", "guide", "copy_tokens"),
    HiddenStore: ("begin", "copied"),
}
"""What the runners call in a step."""
RULE: dict[str, Any] = {"threshold": 1.5, "k": 5}
GRAPHS: dict[str, Any] = {
    "enforce_eager": False,
    "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
}


def requests(rng: random.Random) -> list[tuple[list[int], SamplingParams]]:
    """Guided, grounded, contrastive, looking back (with alarms), and plain."""
    texts = [random_prompt(rng, n, TINY_VOCAB) for n in (33, 40, 64, 90, 31)]
    orders = [
        order("cad", texts[0][-20:]),
        stacked([{"method": "vdgd", "grounding": "x"}], [None], grounding=texts[3]),
        order("contrastive", None),
        order("look_back", None, **RULE),
        None,
    ]
    return [
        (
            text,
            SamplingParams(
                temperature=0,
                max_tokens=TOKENS,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
            ),
        )
        for text, extra in zip(texts, orders, strict=True)
    ]


def served(
    model: Path,
    amateur: Path,
    reference: Reference,
    replace: Any,
    set_mode: SetMode,
    **options: Any,
) -> tuple[Counter[str], list[str]]:
    """Calls of the watched methods while an engine serves all kinds twice; and what went wrong.

    A method that waits raises. Those of the stages contain that: their requests end with an error.
    """
    engine = Engine(model, amateurs={"amateur": str(amateur)}, look_back=True, **options)
    calls, rows = watch(METHODS, replace, set_mode), recorded(engine)
    wrong: list[str] = []
    # vLLM resolves the mode in place: it must not have lowered the one that was asked for.
    resolved = engine.core.vllm_config.compilation_config.cudagraph_mode.name
    if resolved != options.get("compilation_config", {}).get("cudagraph_mode", "NONE"):
        wrong.append(f"graphs: {resolved}")
    for _ in range(2):
        rows.clear()
        cases = requests(random.Random(2))
        outputs = engine.generate(cases)
        for (_, params), output in zip(cases, outputs, strict=True):
            (choice,) = output.outputs
            if (choice.finish_reason, len(choice.token_ids)) != ("length", TOKENS):
                wrong.append(f"{params.extra_args}: {choice}")
        (prompt, _), output = cases[3], outputs[3]
        answer, seen = list(output.outputs[0].token_ids), rows[output.request_id]
        wrong += problems(reference.model, prompt, answer, seen, RULE)
        if not any(row.state for row in seen):
            wrong.append("no alarm")
    wrong += [f"{name}: {left} left" for name, left in engine.leftovers().items() if left]
    engine.close()
    return calls, wrong


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("options", [{"asynchronous": True}, GRAPHS], ids=["async", "graphs"])
def test_no_step_waits(
    tiny: Path,
    tiny_reference: Reference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """Every method was called, none waited, and look-back's distances are Hugging Face's."""
    # Without it Triton's attention multiplies float32 in TF32.
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    amateur, set_mode = make_tiny(tmp_path, seed=5), torch.cuda.set_sync_debug_mode
    calls, wrong = served(tiny, amateur, tiny_reference, monkeypatch.setattr, set_mode, **options)
    assert wrong == []
    assert calls.keys() == {name for names in METHODS.values() for name in names}


def test_the_mode_is_reset() -> None:
    """Also after an error, which is raised in the forbidding mode."""
    modes: list[str] = []

    def wait() -> None:
        raise RuntimeError(f"{modes}: {WAITED}")

    with pytest.raises(RuntimeError, match=r"\['error'\]: called"), forbidden(modes.append):
        wait()
    assert modes == ["error", "default"]


def test_methods_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = ["default"]

    class Stages:
        def guide(self, number: int, *, more: int = 0) -> tuple[int, str]:
            return number + more, modes[-1]

        def other(self) -> str:
            return modes[-1]

    with monkeypatch.context() as patch:
        calls = watch({Stages: ("guide",)}, patch.setattr, modes.append)
        assert Stages().guide(1, more=2) == (3, "error")
        assert Stages().other() == "default"
        assert calls == {"guide": 1}
    assert Stages().guide(1) == (1, "default")
    assert calls == {"guide": 1}
