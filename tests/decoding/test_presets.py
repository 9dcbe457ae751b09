"""Presets: the shipped ones, what a user may add, and what prevents start-up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from divserve.decoding import Stack
from divserve.decoding.presets import SHIPPED, load, validated
from divserve.errors import StartupError

CFG = {"method": "cfg", "scale": 2}


def test_the_shipped_presets_are_decodings() -> None:
    names = {name: Stack(validated(value)).name for name, value in SHIPPED.items()}
    assert names == {"faithful": "adacad+kl_temperature", "diverse": "kl_temperature"}
    assert load([]) == SHIPPED


def test_a_file_and_a_section(tmp_path: Path) -> None:
    file = tmp_path / "mine=1.json"
    file.write_text(json.dumps([CFG, {"method": "entropy_temperature"}]))
    found = load([f"mine={file}"], {"diverse": CFG})
    assert found["mine"][0] == CFG
    assert found["diverse"] == CFG
    assert found["faithful"] == SHIPPED["faithful"]


@pytest.mark.parametrize(
    ("files", "section", "words"),
    [
        (["mine"], None, "NAME=FILE.json, not 'mine'"),
        (["mine="], None, "NAME=FILE.json, not 'mine='"),
        (["={folder}/cfg.json"], None, "preset '': a name is letters, digits, '.', '_' and '-'"),
        (["mine={folder}/none.json"], None, "cannot read"),
        (["mine={folder}/bad.json"], None, "not valid JSON"),
        ([], ["cfg"], "'presets' in the settings file maps names to values of 'decoding'"),
        ([], {"a b": CFG}, "preset 'a b': a name is"),
        ([], {"mine": {"method": "cfg", "scale": -1}}, "preset 'mine': cfg.scale: Input should be"),
        ([], {"mine": "yours"}, "preset 'mine': 'preset' names a built-in one: 'faithful' and"),
        ([], {"mine": {"context_weight": 3}}, "preset 'mine': context_weight: must be a number"),
        ([], {"mine": [CFG, CFG]}, "'cfg' and 'cfg' clash"),
        (["mine={folder}/cfg.json"], {"mine": CFG}, "'mine' is given twice"),
    ],
)
def test_what_stops_a_start(tmp_path: Path, files: list[str], section: Any, words: str) -> None:
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "cfg.json").write_text(json.dumps(CFG))
    with pytest.raises(StartupError) as refused:
        load([item.format(folder=tmp_path) for item in files], section)
    assert words.format(folder=tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
