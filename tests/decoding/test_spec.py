"""What the methods of a request ask of the engine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given

from divserve.decoding import Form, Program, Spec
from tests.support.specs import SPECS


@given(SPECS)
def test_texts_are_all_that_is_read_beside_the_prompt(spec: Spec) -> None:
    texts = [*spec.guides, spec.grounding] if spec.grounding else spec.guides
    assert spec.texts == texts


@pytest.mark.parametrize(
    ("program", "drops"),
    [
        (Program(), False),
        (Program(alpha=2.0, kl_rate=1.0), False),
        (Program(top_p=1.0, log_plausibility=-math.inf), False),
        (Program(top_p=0.999), True),
        (Program(log_plausibility=-1e300), True),
        (Program(form=float(Form.PROBABILITY)), True),
        (Program(form=float(Form.SWITCH)), False),
        (Program(form=float(Form.OBSERVE)), False),
    ],
)
def test_what_may_drop_tokens(program: Program, drops: bool) -> None:
    assert program.drops_tokens() is drops
