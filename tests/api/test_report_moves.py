"""The account of an answer that moved between two models."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from divserve.api.report import ChoiceReport
from divserve.api.texts import Token
from divserve.decoding import STATISTICS, EntropySwitch, Stack
from divserve.errors import DecodingFailed
from tests.support.metrics import Changes


def texts(token_ids: Sequence[int], before: Sequence[Sequence[int]]) -> list[Token]:
    return [Token(f"<{token_id}>", None) for token_id in token_ids]


def new(ratio: float | None, trace: bool = False) -> ChoiceReport:
    method = EntropySwitch.model_validate({"method": "entropy_switch", "trace": trace})
    return ChoiceReport(Stack(method), False, 1.0, 0, texts, ratio)


def output_of(models: list[str]) -> Any:
    return SimpleNamespace(
        token_ids=list(range(len(models))),
        guidance=[[1.0] * len(STATISTICS)] * len(models),
        models=models,
        finish_reason=None,
    )


def account(models: str, ratio: float | None, trace: bool = False) -> dict[str, Any]:
    """The summary of an answer whose tokens these models made, one letter per token."""
    report = new(ratio, trace)
    names = [{"s": "small", "l": "large"}[letter] for letter in models]
    half = len(names) // 2
    for part in (names[:half], names[half:]):
        report.add(output_of(part))
    return report.summary()


@pytest.mark.parametrize(
    ("models", "ratio", "switches", "small", "saved"),
    [
        ("", 0.25, 0, 0, None),
        ("s", 0.25, 0, 1, 0.75),
        ("l", 0.25, 0, 0, 0.0),
        ("ssll", 0.25, 1, 2, 0.375),
        ("slsl", 0.25, 3, 2, 0.375),
        ("sls", 0.1, 2, 2, 0.6),
        ("ssl", 0.0, 1, 2, 0.666667),
        ("sls", None, 2, 2, None),
    ],
)
def test_moves(
    models: str, ratio: float | None, switches: int, small: int, saved: float | None
) -> None:
    found = account(models, ratio)
    assert found["switches"] == switches
    assert found["tokens"] == {"small": small, "large": len(models) - small}
    assert found["compute_saved"] == saved
    assert found["applied_steps"] == len(models)
    assert found["guide_prompt_tokens"] == 0


def test_figures_are_counted_when_a_choice_ends() -> None:
    """Under the method's name; what the engine did not report is counted as lost."""
    changes = Changes(lambda: generate_latest(REGISTRY).decode())
    report, output = new(0.25), output_of(["small", "large"])
    report.add(output)
    assert changes.of("entropy_nats_count", method="entropy_switch") == 0
    output.finish_reason = "stop"
    report.add(output)
    assert changes.of("entropy_nats_count", method="entropy_switch") == 4
    output.guidance = output.guidance[:1]
    with pytest.raises(DecodingFailed, match="2 tokens came with 1 statistics: entropy_switch"):
        report.add(output)
    assert changes.of("unguided_steps_total") == 1
    assert changes.of("broken_pairs_total", reason="front_end") == 1


def test_every_token_of_a_trace_names_its_model() -> None:
    found = account("ssll", 0.25, trace=True)["trace"]
    assert [entry["model"] for entry in found] == ["small", "small", "large", "large"]
    assert [entry["token"] for entry in found] == ["<0>", "<1>"] * 2
