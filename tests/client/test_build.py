"""What the helpers put into a request."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from divserve.client import decoding, preset, with_document
from divserve.decoding import METHODS

GUIDE = {"without": "x"}
CFG = METHODS["cfg"].model_validate({"method": "cfg", "scale": 2})


def test_it_needs_pydantic_alone() -> None:
    heavy = ("torch", "numpy", "vllm", "fastapi", "transformers", "openai", "httpx")
    code = f"import divserve.client, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("made", "value"),
    [
        (decoding("cfg", scale=2), {"method": "cfg", "scale": 2}),
        (decoding("cad", guide=GUIDE, trace="final"),
         {"method": "cad", "guide": GUIDE, "trace": "final"}),
        (decoding(CFG), {"method": "cfg", "scale": 2.0}),
        (decoding(["adacad", "kl_temperature"], guide=GUIDE),
         [{"method": "adacad", "guide": GUIDE}, {"method": "kl_temperature"}]),
        (decoding(["entropy_temperature", {"method": "cad", "alpha": 1}], guide=GUIDE, trace=True),
         [{"method": "entropy_temperature", "trace": True},
          {"method": "cad", "alpha": 1, "guide": GUIDE}]),
        (decoding([{"method": "cfg", "guide": GUIDE}]), [{"method": "cfg", "guide": GUIDE}]),
        (preset(), {"preset": "faithful"}),
        (preset("mine", context_weight="auto", guide=GUIDE, trace={"top": 5}),
         {"preset": "mine", "context_weight": "auto", "guide": GUIDE, "trace": {"top": 5}}),
    ],
)  # fmt: skip
def test_extra_bodies(made: dict[str, Any], value: Any) -> None:
    assert made == {"decoding": value}


def test_a_question_about_a_document() -> None:
    asked = with_document("Lyon.", "Where?", "cad", system="Be brief.", alpha=1)
    fields = {**asked}
    assert fields["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Lyon.\n\nWhere?"},
    ]
    assert fields["extra_body"] == {
        "decoding": {"method": "cad", "alpha": 1, "guide": {"without": "Lyon.\n\n"}}
    }
    assert len(with_document("a", "b").messages) == 1
    with pytest.raises(KeyError):
        asked["model"]


def test_mistakes_are_found_before_the_request() -> None:
    wrong: list[Callable[[], Any]] = [
        lambda: decoding("cad", guide=GUIDE, alpha="much"),
        lambda: decoding("cad"),
        lambda: decoding("no_such"),
        lambda: decoding(["cad", "adacad"], guide=GUIDE),
        lambda: preset(context_weight=3),
    ]
    for build in wrong:
        with pytest.raises(ValidationError):
            build()
    with pytest.raises(TypeError, match="alpha: give parameters within"):
        decoding(["cad", "kl_temperature"], guide=GUIDE, alpha=1)
