"""House rules that no linter checks: which modules may import which, and forbidden text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"

LAYERS = [
    ["divserve"],
    ["divserve.errors", "divserve.metrics", "divserve.plots", "divserve_contract"],
    ["divserve.models", "divserve.remote"],
    ["divserve.decoding", "divserve_kernels"],
    ["divserve.client", "divserve.scores"],
    ["divserve.engine"],
    ["divserve.engine.models"],
    ["divserve.engine.client", "divserve.engine.scheduler", "divserve.engine.worker"],
    ["divserve.http"],
    ["divserve.api", "divserve.batches", "divserve.edges", "divserve.playground"],
    ["divserve.server"],
    ["divserve.startup", "divserve.distill", "divserve.evaluation", "divserve.scoring_file"],
    ["divserve.cli"],
    ["divserve.__main__"],
]
"""Layers from bottom to top: each imports only what is below it.

A module belongs to the longest name that it starts with, so "divserve.engine" has the modules that
are in none of its folders. "divserve" is the package itself and has no other module.
"""

FORBIDDEN = {
    "divserve.client": [
        "divserve.errors", "divserve.metrics", "divserve.models", "divserve_kernels", "fastapi",
        "openai", "torch", "transformers",
    ],
    "divserve.decoding": ["divserve.models", "fastapi", "torch", "transformers"],
    "divserve.distill": [
        "divserve.decoding", "divserve.engine", "divserve.http", "divserve.models",
        "divserve_kernels", "fastapi",
    ],
    "divserve.batches": ["divserve.engine", "torch", "transformers"],
    "divserve.edges": ["divserve.engine", "torch", "transformers"],
    "divserve.evaluation": [
        "divserve.decoding", "divserve.engine", "divserve.http", "divserve.models",
        "divserve_kernels", "fastapi", "torch",
    ],
    "divserve.http": ["divserve.engine", "torch", "transformers"],
    "divserve.playground": ["divserve.api", "divserve.engine", "torch", "transformers"],
    "divserve.scoring_file": [
        "divserve.decoding", "divserve.engine", "divserve.http", "divserve.models",
        "divserve_kernels", "fastapi", "torch",
    ],
    "divserve_contract": ["divserve", "fastapi", "numpy", "torch"],
    "divserve_kernels": ["divserve", "fastapi", "transformers"],
}  # fmt: skip
"""What no module of a package may import, even indirectly, although it is a lower layer."""

SEAMS = ("divserve.engine", "divserve.startup", "divserve.http.openai")
"""Where vLLM may be imported."""

MACHINE_PATH = re.compile(r"(?<![\w.\-}])/(?:work|root|home|Users)/\w")

Graph = dict[str, set[str]]
"""What each module imports."""


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def belongs(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def with_packages(module: str) -> Iterator[str]:
    """A module and the packages that it is in, whose ``__init__`` runs before it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


@cache
def sources() -> dict[str, Path]:
    """The file of each of our modules."""
    files = {}
    for folder in (ROOT / "divserve", KERNELS / "divserve_contract", KERNELS / "divserve_kernels"):
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            files[".".join(parts).removesuffix(".__init__")] = file
    assert len(files) > 100
    return files


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, at any depth.

    Imports in functions and under ``TYPE_CHECKING`` count too: they are deferred, but a reader of
    the file still has to know the other module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & sources().keys()
            if names - sources().keys():
                yield node.module


@cache
def direct_imports() -> Graph:
    return {
        module: set(imported(ast.parse(file.read_text(encoding="utf-8"))))
        for module, file in sources().items()
    }


@cache
def import_graph() -> Graph:
    """The direct imports, and the packages that run before what is imported.

    Modules outside our packages import nothing here.
    """
    graph: Graph = {}
    for module, targets in direct_imports().items():
        packages = {package for target in targets for package in with_packages(target)}
        # A module's own packages run before it, whatever it imports.
        graph[module] = targets | packages - set(with_packages(module))
    return graph


def chain_to(package: str, start: str) -> list[str]:
    """The shortest chain of imports from a module to one of a package; empty if there is none."""
    chains, seen = [[start]], {start}
    for chain in chains:
        for target in sorted(import_graph().get(chain[-1], set()) - seen):
            if belongs(target, package):
                return [*chain, target]
            seen.add(target)
            chains.append([*chain, target])
    return []


def layer_of(module: str) -> tuple[int, str]:
    """The number of a module's layer, and the name that it has there."""
    numbers = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name in with_packages(module):
        if name in numbers and (name != "divserve" or module == name):
            return numbers[name], name
    raise AssertionError(f"{module} has no layer: put it into LAYERS")


def test_imports_point_down() -> None:
    wrong = []
    for module, targets in import_graph().items():
        height, name = layer_of(module)
        for target in sorted(targets & sources().keys()):
            height_of_target, name_of_target = layer_of(target)
            if name != name_of_target and height <= height_of_target:
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports() -> None:
    try:
        TopologicalSorter(import_graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_chain_of_imports_leads_to(package: str) -> None:
    modules = [module for module in sources() if belongs(module, package)]
    assert modules
    chains = [chain_to(other, module) for module in modules for other in FORBIDDEN[package]]
    wrong = [" -> ".join(chain) for chain in chains if chain]
    assert not wrong, "\n".join(wrong)


def test_vllm_is_imported_at_the_seams_alone() -> None:
    wrong = [
        module
        for module, targets in direct_imports().items()
        if not any(belongs(module, seam) for seam in SEAMS)
        and any(belongs(target, "vllm") for target in targets)
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
