"""The list of seams is complete and not stale, and vLLM is as it was when we read it.

vLLM's source is parsed, not imported. After a change of ours, or with a new version of vLLM, see
``docs/seams.md``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from divserve.engine import compat
from divserve.engine.seams import SEAMS, Seam, table
from divserve.engine.seams.seam import CHECKED
from tests.support import seams
from tests.support.seams_found import (
    SOURCE,
    bases,
    first,
    held,
    overrides,
    subclasses,
    touched,
    uses,
)

LISTED = {(seam.target, seam.file) for seam in SEAMS}

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


def defining(seam: Seam) -> str:
    """The target by the name of the class that defines it."""
    member = SOURCE.find(seam.target)
    return seam.target if member is None else member.target


def lines(what: str, found: set[tuple[str, str]]) -> list[str]:
    """One line per target and file."""
    return [f"{what}: {target} in {file}" for target, file in sorted(found)]


DEFINED = {(defining(seam), seam.file, seam.how) for seam in SEAMS}


def test_every_override_is_listed_and_nothing_else_is() -> None:
    listed = {(target, file) for target, file, how in DEFINED if how == "overridden"}
    # Bases that are known only after a model has been loaded.
    models = {t for t, _ in listed if t.startswith("vllm.model_executor.models.interfaces_base")}
    wrong = lines("not listed", overrides() - listed)
    wrong += lines("no override", {row for row in listed - overrides() if row[0] not in models})
    assert wrong == [], "\n".join(wrong)


def test_what_subclasses_use_of_their_bases_is_listed() -> None:
    listed = {(target, file) for target, file, _ in DEFINED}
    wrong = lines("not listed", (uses() | held()) - listed)
    assert wrong == [], "\n".join(wrong)


def test_what_is_written_on_or_private_to_other_objects_is_listed() -> None:
    names = {(target.replace(":", ".").rpartition(".")[2], file) for target, file in LISTED}
    wrong = lines("not listed", touched() - names)
    assert wrong == [], "\n".join(wrong)


def test_every_row_is_used_where_it_says() -> None:
    texts = {file: module.text for file, module in seams.ours(SOURCE)}
    wrong = [
        f"{seam.target}: not in {seam.file}"
        for seam in SEAMS
        if seam.how != "copied"
        and seam.target.replace(":", ".").rpartition(".")[2].removeprefix("__init__")
        not in texts.get(seam.file, "")
    ]
    assert wrong == [], "\n".join(wrong)
    assert {seam.file for seam in SEAMS} <= texts.keys()


def test_a_row_says_one_thing_once() -> None:
    rows = Counter((seam.target, seam.file, seam.how) for seam in SEAMS)
    assert [row for row, count in rows.items() if count > 1] == []
    assert [seam.target for seam in SEAMS if not seam.what or "|" in seam.what] == []


def test_no_abstract_member_of_vllm_is_left_open() -> None:
    whole = {c.target for c, _, _ in subclasses()}
    wrong = []
    for cls in map(SOURCE.get_class, sorted(whole)):
        asked = {name for base in bases(cls) for name in SOURCE.abstract(base)}
        for name in sorted(asked):
            member = SOURCE.member(cls, name) or first(bases(cls), name)
            if member is None or "@abstractmethod" in member.signature:
                wrong.append(f"{cls.target} lacks {name}")
    assert wrong == [], "\n".join(wrong)


def test_vllm_is_what_it_was() -> None:
    found = seams.differences(seams.recorded(), seams.fingerprints(SOURCE))
    assert found == [], f"see docs/seams.md:\n{chr(10).join(found)}"


def test_the_record_lacks_no_seam() -> None:
    record = seams.recorded()
    asked = {*seams.imported(SOURCE), *(seam.target for seam in SEAMS)}
    assert sorted(asked - record.keys()) == []
    hashed = [seam for seam in SEAMS if "source" in CHECKED[seam.how]]
    variables = {s.target for s in hashed if "source" not in record[s.target]}
    assert variables == {"vllm.entrypoints.serve.engine.protocol:OpenAIBaseModel.field_names"}


def test_the_page_shows_the_list() -> None:
    text = seams.PAGE.read_text(encoding="utf-8")
    assert seams.GENERATED in text
    assert text == seams.page(text), "python -m tests.support.seams"
    assert table().count("\n| `vllm.") == len(SEAMS)


def test_another_vllm_says_by_name_what_it_changed(tmp_path: Path) -> None:
    here = SOURCE.module("vllm.v1.core.sched.scheduler")
    outputs = SOURCE.module("vllm.v1.outputs")
    assert here is not None
    assert outputs is not None
    changes = [
        (here, "def _free_request(", "def _free_a_request("),
        (
            here,
            "def reset_prefix_cache(\n        self,",
            "def reset_prefix_cache(\n        self, all,",
        ),
        (here, "request.num_preemptions += 1", "request.num_preemptions += 2"),
        (
            outputs,
            "    def get_output(",
            "    def get_more(self): ...\n\n    @abstractmethod\n    def get_output(",
        ),
    ]
    texts = {here: here.text, outputs: outputs.text}
    for module, old, new in changes:
        assert old in texts[module]
        texts[module] = texts[module].replace(old, new)
    for module, text in texts.items():
        path = tmp_path.joinpath(*module.name.split(".")[1:]).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = list(seams.compare(tmp_path))
    free, reset, preempt = (
        f"{SCHEDULER}.{n}" for n in ("_free_request", "reset_prefix_cache", "_preempt_request")
    )
    assert f"{free}: gone" in found
    assert {line.partition(": ")[0] for line in found if " was " in line} == {
        reset, preempt, "vllm.v1.outputs:AsyncModelRunnerOutput",
    }  # fmt: skip
    assert any(line.startswith(f"{reset}: signature was 'def (self, reset_") for line in found)
    added = [line for line in found if line.startswith("+ ")]
    assert any(line.endswith("request.num_preemptions += 2") for line in added)


@pytest.mark.parametrize("name", compat.MOVED)
def test_names_that_have_moved_are_in_one_place(name: str) -> None:
    there = [module for module in compat.MOVED[name] if SOURCE.module(module)]
    assert len(there) == 1
    assert SOURCE.find(f"{there[0]}:{name}") is not None


def test_a_name_that_has_moved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "dumps": ("json.nowhere", "nowhere.at.all", "json", "pickle"),
        "no": ("json.nowhere",),
    }
    monkeypatch.setattr(compat, "MOVED", places)
    assert compat.moved("dumps") is json.dumps
    with pytest.raises(ImportError, match=r"no no in json\.nowhere"):
        compat.moved("no")
