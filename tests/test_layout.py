"""The rules of the house that no linter knows: who may import whom, and what no file may say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORBIDDEN = {
    "divserve": ["vllm"],
    "divserve/decoding": ["divserve.api", "divserve.engine", "fastapi", "torch", "transformers"],
    "divserve/edges": ["divserve.engine", "torch", "transformers"],
    "divserve/engine": ["divserve.api", "divserve.edges", "divserve.http", "divserve.startup"],
    "kernels/divserve_contract": ["divserve", "divserve_kernels", "numpy", "torch"],
    "kernels/divserve_kernels": ["divserve", "fastapi", "transformers", "vllm"],
}
"""Modules that a folder may not import; vLLM is forbidden everywhere but in `SEAMS`."""

MACHINE_PATH = re.compile(r"(?<![\w.\-}])/(?:work|root|home|Users)/\w")


SEAMS = ("divserve/engine", "divserve/startup", "divserve/http/openai.py")
"""Where vLLM may be imported."""


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Every module that `file` imports, at any depth, with its line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder: str) -> None:
    files = [
        file
        for file in (ROOT / folder).rglob("*.py")
        if folder != "divserve" or not str(file.relative_to(ROOT)).startswith(SEAMS)
    ]
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {module}"
        for file in files
        for line, module in imports(file)
        if any(belongs(module, package) for package in FORBIDDEN[folder])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("divserve.decoding", {"fastapi", "torch", "transformers", "vllm"}),
        ("divserve_kernels", {"divserve", "fastapi", "transformers", "vllm"}),
    ],
)
def test_importing_stays_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({absent} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_no_file_names_a_path_of_a_machine() -> None:
    wrong = []
    for file in tracked_files():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line) or str(ROOT) in line
        ]
    assert wrong == []
