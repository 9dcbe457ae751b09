"""Fingerprints of what divserve takes from vLLM, and the record they are compared with.

python -m tests.support.seams          writes the record and the table of docs/seams.md anew
python -m tests.support.seams FOLDER   lists what differs in the vLLM package in FOLDER, with the
                                       differences of the sources that we override, patch or copy
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
from collections.abc import Iterator
from functools import cache
from importlib import util
from pathlib import Path

from divserve.engine.seams import SEAMS, table
from divserve.engine.seams.seam import CHECKED
from divserve.startup.checks import VLLM_VERSION
from tests.support.source import Source
from tests.support.syntax import Module, module_at

__all__ = ["PAGE", "RECORD", "ROOT", "differences", "fingerprints", "ours", "source_of"]

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / f"tests/data/seams-{VLLM_VERSION}.json"
PAGE = ROOT / "docs/seams.md"
GENERATED = "<!-- From here on: python -m tests.support.seams -->\n"

Fingerprint = dict[str, str]


@cache
def source_of(vllm: Path | None = None) -> Source:
    """Our packages and a vLLM package: the installed one, or the one in a folder."""
    if vllm is None:
        found = util.find_spec("vllm")
        assert found is not None
        assert found.origin is not None
        vllm = Path(found.origin).parent
    return Source({"vllm": vllm, "divserve": ROOT / "divserve", "deploy": ROOT / "deploy"})


def ours(source: Source) -> Iterator[tuple[str, Module]]:
    """Our files, by their path in the repository."""
    for folder in ("divserve", "deploy/ray"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT)
            name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
            module = source.module(name) or module_at(name, path)
            yield str(file), module


@cache
def imported(source: Source) -> dict[str, str]:
    """The names that we import from vLLM, and the first file that imports each."""
    found: dict[str, str] = {}
    for file, module in ours(source):
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                for alias in node.names:
                    found.setdefault(f"{node.module}:{alias.name}", file)
    return found


@cache
def fingerprints(source: Source) -> dict[str, Fingerprint]:
    """What is compared, by target: `Seam` objects and imported names, without missing ones."""
    asked = dict.fromkeys(imported(source), "signature") | {s.target: "" for s in SEAMS}
    for seam in SEAMS:
        asked[seam.target] = max(asked[seam.target], CHECKED[seam.how])
    found: dict[str, Fingerprint] = {}
    for target, checked in sorted(asked.items()):
        member = source.find(target)
        if member is not None:
            mark = {"signature": member.signature}
            if isinstance(member.node, ast.ClassDef):
                abstract = source.abstract(source.get_class(target))
                mark["abstract"] = ", ".join(abstract)
            if "source" in checked:
                mark["source"] = member.source
            found[target] = {name: value for name, value in mark.items() if value}
        elif source.module(target.replace(":", ".")) is not None:
            found[target] = {"signature": "module"}
    return found


def differences(before: dict[str, Fingerprint], after: dict[str, Fingerprint]) -> list[str]:
    """What has changed, one line each, by the name of the seam."""
    lines = []
    for target in sorted(before.keys() | after.keys()):
        old, new = before.get(target), after.get(target)
        if old is None:
            lines.append(f"{target}: not in the record")
        elif new is None:
            lines.append(f"{target}: gone")
        else:
            lines += [
                f"{target}: {name} was '{old.get(name, '')}', is '{new.get(name, '')}'"
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ]
    return lines


def recorded() -> dict[str, Fingerprint]:
    """The committed record."""
    found: dict[str, Fingerprint] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def page(text: str) -> str:
    """The page with a fresh table."""
    head, mark, _ = text.partition(GENERATED)
    return f"{head}{mark}\n{table()}"


def compare(folder: Path) -> Iterator[str]:
    """What differs between the installed vLLM and one in a folder."""
    here, there = source_of(), source_of(folder)
    before, after = fingerprints(here), fingerprints(there)
    yield from differences(before, after)
    for target in before:
        old, new = here.find(target), there.find(target)
        if "source" in before[target] and old is not None and new is not None:
            yield from difflib.unified_diff(
                old.text.splitlines(), new.text.splitlines(), target, target, lineterm=""
            )


def main(arguments: list[str]) -> None:
    """See the module."""
    if arguments:
        sys.stdout.writelines(f"{line}\n" for line in compare(Path(arguments[0])))
        return
    RECORD.write_text(json.dumps(fingerprints(source_of()), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
