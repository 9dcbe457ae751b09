"""What each arm asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.evaluation import arms
from divserve.evaluation.arms import MASKS
from divserve.evaluation.items import Item
from tests.evaluation.listed import LISTED

MESSAGES = [{"role": "user", "content": "The document. What is it?"}]
ITEM = Item(id="1", messages=MESSAGES, document="The document.", answers=["it"])
BARE = Item(id="2", messages=MESSAGES, answers=["it"])


def test_masks_name_parameters() -> None:
    for method, (parameter, _) in MASKS.items():
        assert 0 < LISTED[method].defaults[parameter] < 1


def test_the_guide_lacks_the_document() -> None:
    (body,) = arms.of_method("x", [{"method": "cad"}], 0).decoding_of(ITEM, LISTED) or []
    assert body == {"method": "cad", "guide": {"without": "The document."}}
    (body,) = arms.of_method("x", [{"method": "vdgd"}], 0).decoding_of(ITEM, LISTED) or []
    assert body == {"method": "vdgd", "grounding": "The document."}


@pytest.mark.parametrize(
    ("decoding", "made"),
    [
        ([{"method": "cad"}], None),
        ([{"method": "cad"}, {"method": "entropy_temperature", "theta": 1}], None),
        ([{"method": "cfg"}], [{"method": "cfg"}]),
        ([{"method": "cad", "guide": {"role": "system"}}],) * 2,
        ([], None),
    ],
)
def test_an_item_without_a_document(decoding: Any, made: Any) -> None:
    assert arms.of_method("x", decoding, 0).decoding_of(BARE, LISTED) == made


def test_controls() -> None:
    arm = arms.of_method("cd", [{"method": "contrastive"}], 1)
    mask = arms.masked(arm, LISTED)
    assert mask is not None
    assert (mask.decoding, mask.temperature, mask.sampling) == ((), 1, {"min_p": 0.1})
    assert (mask.control_of, mask.sampled) == (arm.name, True)
    body = {"method": "linear_alignment", "nucleus": 0.5}
    own = arms.masked(arms.of_method("la", [body], 1), LISTED)
    assert own is not None
    assert own.sampling == {"top_p": 0.5}
    assert arms.masked(arms.of_method("cad", [{"method": "cad"}], 1), LISTED) is None
    assert arms.colder(arm, 0.5).temperature == 0.5
    assert (arms.plain(0).name, arms.plain(1).name) == ("plain", "plain at 1")


def test_methods_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text('[{"method": "cad"}, {"method": "kl_temperature"}]')
    given = arms.given(["adacad", 'strong={"method": "cad", "alpha": 1}', f"own={file}"], LISTED)
    assert given == {
        "adacad": [{"method": "adacad"}],
        "strong": [{"method": "cad", "alpha": 1}],
        "own": [{"method": "cad"}, {"method": "kl_temperature"}],
    }


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["no_such"], "has no method 'no_such'"),
        (["x=3"], "cannot read 3"),
        (["x={"], "not JSON"),
        (["x=[3]"], "has no method ''"),
        (["contrastive"], "was started without contrastive"),
        (["cad", "cad"], "a name of its own"),
        (['plain={"method": "cad"}'], "a name of its own"),
    ],
)
def test_mistakes(texts: list[str], told: str) -> None:
    with pytest.raises(StartupError, match=told):
        arms.given(texts, LISTED)
