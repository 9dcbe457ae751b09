"""The course of a run: prepare or resume, train, write."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from divserve import plots
from divserve.distill import data, report, state, student, teacher
from divserve.distill.display import Display
from divserve.distill.sampling import Sequences, generator, sample
from divserve.distill.settings import Settings
from divserve.distill.state import State
from divserve.distill.teacher import Teacher
from divserve.distill.train import Stopped, Trainer
from divserve.errors import StartupError

__all__ = ["distill"]

_LOCK = "distill.lock"
_MODEL = ("config.json", "model.safetensors")
_SCRAPS = {_LOCK, ".partial", "distill.pt", "distill.partial"}
"""What an interrupted run may leave in its folder."""


def distill(settings: Settings, display: Display, stop: Callable[[], bool] = lambda: False) -> bool:
    """Makes the student of `settings` in its folder; returns whether it was finished.

    False: `stop` asked to stop. The folder's checkpoint has what was trained until then, and a run
    with the same settings resumes from it.

    Raises:
        StartupError: the teacher, the folder or a setting cannot be used.
    """
    device = _device(settings.device)
    known = settings.fingerprint() | {
        "teacher": teacher.fingerprint(settings.teacher), "device": device.type
    }  # fmt: skip
    _check_folder(settings)
    with _locked(settings.out):
        if not settings.resume:
            _clear(settings.out)
        earlier = _earlier(settings, known, device)
        if not plots.is_installed():
            display.say(
                "no curve.svg will be drawn: matplotlib is not installed "
                "(pip install '.[plots]' in divserve's folder)"
            )
        display.phase("loading the teacher")
        big = teacher.load(settings.teacher, device)
        if settings.length >= big.context:
            raise StartupError(
                f"--length {settings.length}: the teacher's context has {big.context} tokens, and "
                "prompts need some of them"
            )
        kept = student.choose_layers(len(big.model.model.layers), settings.layers, settings.keep)
        small = student.make(big, kept)
        try:
            now = earlier["state"] if earlier else _prepare(settings, big, display, stop)
            trainer = Trainer(settings, big, small, now, known)
            if earlier:
                trainer.restore(earlier["weights"], earlier["optimizer"])
                display.say(f"going on after {now.tokens:,} tokens and {now.seconds:.0f} s")
            _train(trainer, display, stop)
        except Stopped:
            return False
        display.phase("writing the student")
        student.save(small, big, settings.out)
        report.write(settings.out, _account(trainer, kept))
        state.checkpoint(settings.out).unlink()
    return True


def _device(wanted: str) -> torch.device:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise StartupError("--device cuda: torch finds no GPU here")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def _check_folder(settings: Settings) -> None:
    """Rejects a folder that holds anything other than an unfinished run."""
    out = settings.out
    if out.exists() and not out.is_dir():
        raise StartupError(f"{out} is a file: choose another --out")
    if out.is_dir() and not state.checkpoint(out).exists():
        finished = _made_here(out)
        if finished and settings.resume:
            raise StartupError(
                f"{out} holds a finished student (REPORT.md): choose another --out, or start anew "
                "with --no-resume"
            )
        if not finished and {file.name for file in out.iterdir()} - _SCRAPS:
            raise StartupError(
                f"{out} exists and was not made by divserve distill: choose another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _LOCK).touch()
    except OSError as error:
        raise StartupError(f"cannot write to {out}: {error.strerror}") from error


def _made_here(out: Path) -> bool:
    try:
        found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("made_by") == report.MADE_BY


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartupError(f"another run is at work in {out}") from error
        yield


def _clear(out: Path) -> None:
    for name in (*_MODEL, *report.FILES):
        (out / name).unlink(missing_ok=True)
    state.checkpoint(out).unlink(missing_ok=True)


def _earlier(
    settings: Settings, known: dict[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The checkpoint of the folder; None if there is none."""
    if not state.checkpoint(settings.out).exists():
        return None
    whole = state.load(settings.out, device)
    for name, value in (("teacher", "teacher"), ("device", "--device")):
        if whole["settings"].get(name) != known[name]:
            raise StartupError(
                f"{settings.out} was begun with another {value}: give the same, or start anew "
                "with --no-resume"
            )
    settings.refuse_other(whole["settings"])
    return whole


def _prepare(settings: Settings, big: Teacher, display: Display, stop: Callable[[], bool]) -> State:
    """The prompts, and the held-out sequences, in which the teacher answers some of them."""
    started = time.monotonic()

    def tick() -> None:
        if stop():
            raise Stopped

    if settings.prompts is None:
        display.phase(f"the teacher writes {settings.self_prompts} prompts")
        prompts = data.write(big, settings.self_prompts, settings.seed, tick)
    else:
        prompts = data.read(settings.prompts, big, settings.length)
    training, held = data.split(prompts, settings.seed)
    display.phase(f"the teacher answers {len(held)} held-out prompts")
    random = generator(settings.seed, "held-out", 0)
    drawn: Sequences = sample(
        big.model, held, settings.length, big.stops, random, settings.temperature, tick
    )
    spent = time.monotonic() - started
    return State(prompts=training, held_out=drawn, preparation=spent)


def _train(trainer: Trainer, display: Display, stop: Callable[[], bool]) -> None:
    try:
        trainer.run(display, stop)
    except Stopped:
        trainer.save()
        raise


def _account(trainer: Trainer, kept: list[int]) -> report.Account:
    settings, now, big = trainer.settings, trainer.state, trainer.teacher.model
    cpu = f"CPU (threads: {torch.get_num_threads()})"
    return report.Account(
        teacher=settings.teacher.resolve().name,
        teacher_layers=len(big.model.layers),
        kept=kept,
        trained_parameters=sum(value.numel() for value in trainer.weights.values()),
        parameters=sum(value.numel() for value in trainer.model.parameters()),
        prompts=len(now.prompts),
        held_out_prompts=len(now.held_out),
        held_out_tokens=int(now.held_out.count.sum()),
        hardware=cpu if trainer.model.device.type == "cpu" else torch.cuda.get_device_name(),
        settings={
            name: value
            for name, value in trainer.known.items()
            if name not in ("teacher", "prompts")
        }
        | {"prompts": settings.prompts and settings.prompts.name},
        curve=now.curve,
        tokens=now.tokens,
        fresh_tokens=now.fresh_tokens,
        seconds=now.seconds,
        preparation=now.preparation,
    )
