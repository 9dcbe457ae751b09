"""What each method does to a model's answers: `divserve eval` on a server that is started here.

A study is a set of tasks with the methods made for them. Answers are kept in build/eval, so the
same command goes on after a stop; docs/results/MODEL has the report of the studies that are done.

    python -m bench.evaluate                                  # SmolLM2: 40 minutes on two cores
    python -m bench.evaluate --model FOLDER --study conflict
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from bench import plot_evaluation
from tests.support.models import ROOT, SMOLLM2
from tests.support.platform import ON_GPU
from tests.support.server import API_KEY, serving

WORK = ROOT / "build" / "eval"
RESULTS = ROOT / "docs" / "results"
KV_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "2"}
"""GiB: the prompts of all arms of a study fit."""
SERVER = ("--max-model-len", "2048", "--block-size", "32")
"""Blocks so short that the prefix cache finds short prompts again."""


@dataclass(frozen=True, slots=True)
class Study:
    """Arguments of ``divserve eval`` and of the server."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    limit: int
    sampled: int
    max_tokens: int
    flags: tuple[str, ...] = ()


CAD = 'cad={"method": "cad", "alpha": 1}'
FROM_THE_SYSTEM = 'linear_alignment={"method": "linear_alignment", "guide": {"role": "system"}}'
AMATEUR = ("--amateur", "drop:4")
STUDIES = (
    Study("conflict", ("conflict",), ("adacad", CAD, "coiecd", "kl_temperature"), 120, 60, 16),
    Study("distractors", ("distractors",), ("instructive", FROM_THE_SYSTEM, "adacad"), 80, 40, 16),
    Study(
        "texts", ("continuation", "enumeration"), ("look_back", "entropy_temperature"), 40, 30, 64,
        ("--look-back",),
    ),
    Study("arithmetic", ("arithmetic",), ("contrastive", "cfg"), 40, 24, 80, AMATEUR),
    Study("code", ("code",), ("contrastive", "uscd"), 32, 0, 96, AMATEUR),
    Study("extractive", ("extractive",), ("adacad", CAD, "vdgd"), 60, 30, 16),
)  # fmt: skip
"""In this order, so that a run that is stopped has the first ones. Short answers, so that two cores
are done with SmolLM2 within 40 minutes."""


def command(study: Study, url: str, name: str, parallel: int) -> list[str]:
    """The command line of a study."""
    flags = " ".join((*SERVER, *study.flags))
    given = [sys.executable, "-m", "divserve", "eval", *study.tasks, "--url", url]
    given += [part for method in study.methods for part in ("--method", method)]
    for option in ("limit", "sampled", "max_tokens"):
        given += [f"--{option.replace('_', '-')}", str(getattr(study, option))]
    given += ["--parallel", str(parallel), "--out", str(WORK / name / study.name)]
    given += ["--note", f"Server: divserve serve {name} {flags}."]
    if ON_GPU:
        import torch

        given += ["--hardware", torch.cuda.get_device_name()]
    return given


def ended(given: Sequence[str], until: float) -> int | None:
    """Runs a command; interrupts it and returns None when it is not done by then."""
    process = subprocess.Popen(given, env={**os.environ, "DIVSERVE_API_KEY": API_KEY})
    try:
        return process.wait(max(0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return None


def publish(name: str, results: Path) -> None:
    """Joins the reports of the studies that are done."""
    done = [one for one in STUDIES if (WORK / name / one.name / "report.json").exists()]
    parts, figures = [f"# {name}: methods against plain decoding"], {}
    (results / name).mkdir(parents=True, exist_ok=True)
    for study in done:
        folder = WORK / name / study.name
        text = (folder / "report.md").read_text(encoding="utf-8")
        parts.append(re.sub(r"^# .*", f"# Study: {study.name}", text, count=1))
        figures[study.name] = json.loads((folder / "report.json").read_text())
        for picture in folder.glob("*.svg"):
            shutil.copy(picture, results / name)
    studies = [re.sub("^#", "##", part, flags=re.MULTILINE) for part in parts[1:]]
    text = "\n\n".join([parts[0], *(one.strip() for one in studies)])
    (results / name / "report.md").write_text(text + "\n", encoding="utf-8")
    (results / name / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot_evaluation.draw(results / name)


def main(
    model: Annotated[str, typer.Option(help="Folder or name of a model.")] = str(SMOLLM2),
    study: Annotated[list[str] | None, typer.Option(help="Only these studies.")] = None,
    minutes: Annotated[float, typer.Option(help="Stop after so many; run it again to go on.")] = 40,
    parallel: Annotated[int, typer.Option(help="Requests at once.")] = 16,
    results: Annotated[Path, typer.Option(help="Folder of the report.")] = RESULTS,
) -> None:
    """Run the studies, and write the report."""
    start = time.monotonic()
    until, name = start + 60 * minutes, Path(model).name
    chosen = [one for one in STUDIES if study is None or one.name in study]
    for flags, together in groupby(chosen, lambda one: one.flags):
        print(f"→ starting a server with {name} {' '.join(flags)}", flush=True)
        (WORK / name).mkdir(parents=True, exist_ok=True)
        served = ("--served-model-name", name, *SERVER, *flags)
        log = WORK / name / "server.log"
        with serving(Path(model), log, served, environment=KV_CACHE) as (url, _):
            for one in together:
                print(f"→ {one.name}, minute {(time.monotonic() - start) / 60:.0f}", flush=True)
                code = ended(command(one, url, name, parallel), until)
                if code != 0:
                    told = "it failed" if code else "time is over: the same command goes on"
                    sys.exit(f"{one.name}: {told}")
                publish(name, results)
    print(f"{results / name / 'report.md'} is ready")


if __name__ == "__main__":
    typer.run(main)
