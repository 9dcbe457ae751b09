"""The options of ``divserve score``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from divserve.scoring_file.settings import Settings, fields_of

__all__ = ["score"]

KEY = "DIVSERVE_API_KEY"
FAILED = 1
INTERRUPTED = 130


def score(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL: bodies of POST /v1/decoding/score.")
    ],
    out: Annotated[Path, typer.Option(help="File to write: NAME.jsonl or NAME.parquet.")],
    scores: Annotated[
        list[str] | None, typer.Option(help="Names with commas; may be repeated.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="NAME, JSON or FILE.json.")] = None,
    guide: Annotated[str | None, typer.Option(help="JSON or FILE.json.")] = None,
    k: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Of min_k and min_k_pp.")
    ] = None,
    cap: Annotated[float | None, typer.Option(min=1e-9, max=1e9, help="Of dc_pdd.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Keep figures of every token.")] = False,
    top_logprobs: Annotated[
        int | None, typer.Option(min=0, max=20, help="Likeliest tokens of every token.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Served model; else the first one.")] = None,
    url: Annotated[str, typer.Option(help="Of a server of divserve.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar=KEY, show_default=False, help="The server's key.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once.")] = 8,
    resume: Annotated[
        bool, typer.Option(help="Go on with what --out holds, or start anew.")
    ] = True,
) -> int:
    """Score the texts of FILE through a running server.

    A line is a request, {"id", "input"}, or {"id", "messages", "answer"}; options complete what a
    line does not say. Ctrl-C stops; the same command goes on. Exit code 1: lines failed.
    """
    fields = fields_of(
        scores or (), method, guide, k=k, cap=cap, tokens=tokens or None, top_logprobs=top_logprobs
    )
    settings = Settings(file, out, url, api_key, model, fields, parallel, resume)
    from divserve.scoring_file import run
    from divserve.scoring_file.display import Display, show

    try:
        with Display() as display:
            summary = asyncio.run(run.score_file(settings, display.show))
    except KeyboardInterrupt:
        typer.echo(f"stopped: the same command goes on from {out}.partial", err=True)
        return INTERRUPTED
    show(summary)
    typer.echo(f"{out} is ready")
    return FAILED if summary["failed"] else 0
