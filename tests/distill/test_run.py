"""Whole runs on the tiny model: they learn, stop, resume exactly, and reject bad input by name."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console
from torch import Tensor

from divserve.distill import run, state
from divserve.distill.display import Display
from divserve.distill.sampling import Sequences
from divserve.distill.settings import Loss, Settings
from divserve.distill.teacher import Teacher
from divserve.distill.train import ROUND
from divserve.errors import StartupError
from tests.distill.conftest import CPU

Short = Callable[..., Settings]
LOOKS = (3, 25, 40, 60, 80)


def stopping_at(call: int) -> Callable[[], bool]:
    """Asks to stop at the `call`-th check and from then on."""
    looks = iter(range(call))
    return lambda: next(looks, None) is None


def report(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((settings.out / "report.json").read_text())
    return found


def held_out_of(settings: Settings) -> Sequences:
    now: state.State = state.load(settings.out, CPU)["state"]
    return now.held_out


def independent(teacher: Path, student: Path, held_out: Sequences) -> dict[str, float]:
    """The figures from the folders alone: plain forward passes, float64, token by token."""
    from transformers import AutoModelForCausalLM

    big, small = (
        AutoModelForCausalLM.from_pretrained(path).double() for path in (teacher, student)
    )
    kl, accepted, same = [], [], []
    for tokens, first, count in zip(
        held_out.tokens, held_out.first.tolist(), held_out.count.tolist(), strict=True
    ):
        text: Tensor = tokens[None, : first + 1 + count]
        with torch.no_grad():
            p, q = (model(text).logits[0, first:-1].softmax(-1) for model in (big, small))
        assert len(p) == count
        kl += (p * (p / q).log()).sum(-1).tolist()
        accepted += torch.minimum(p, q).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).double().tolist()
    return {
        "kl": sum(kl) / len(kl),
        "acceptance": sum(accepted) / len(kl),
        "agreement": sum(same) / len(kl),
    }


def test_a_run_learns_and_its_report_is_true(short: Short, display: Display, tiny: Path) -> None:
    settings = short(tokens=6000)
    assert not run.distill(settings, display, stopping_at(60))
    held_out = held_out_of(settings)
    assert run.distill(settings, display)

    account = report(settings)
    first, last = account["curve"][0], account["curve"][-1]
    assert last["figures"]["kl"] < 0.9 * first["figures"]["kl"]
    assert last["figures"]["acceptance"] > first["figures"]["acceptance"] + 0.01
    assert last["figures"] == pytest.approx(independent(tiny, settings.out, held_out), abs=1e-4)
    assert (first["tokens"], first["loss"]) == (0, None)
    assert last["tokens"] == account["tokens"] >= 6000
    assert account["tokens"] == pytest.approx(2 * account["fresh_tokens"], rel=0.1)
    assert [point["tokens"] for point in account["curve"]] == sorted(
        {point["tokens"] for point in account["curve"]}
    )
    assert account["held_out_tokens"] == int(held_out.count.sum())
    assert (account["kept"], account["teacher_layers"]) == ([0], 2)
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(settings.out)
    assert account["parameters"] == sum(value.numel() for value in found.parameters())
    layers = sum(value.numel() for value in found.model.layers.parameters())
    assert account["trained_parameters"] == layers
    text = (settings.out / "REPORT.md").read_text()
    for value in (f"| {last['figures']['kl']:.3f} |", f"{account['tokens']:,} tokens", "curve.svg"):
        assert value in text
    assert not state.checkpoint(settings.out).exists()


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_every_loss_brings_itself_down(
    short: Short, display: Display, loss: Loss, on_policy: float
) -> None:
    settings = short(loss=loss, on_policy=on_policy, hidden_weight=0, tokens=4000)
    assert run.distill(settings, display)
    losses = [point["loss"] for point in report(settings)["curve"][1:]]
    assert losses[-1] < 0.97 * losses[0]


def weights(settings: Settings) -> bytes:
    return (settings.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("looks", LOOKS)
def test_a_stopped_run_goes_on_exactly(
    short: Short, display: Display, tmp_path: Path, looks: int
) -> None:
    """Whether it was stopped during preparation, while sampling, or between two steps."""
    whole, parts = short(out=tmp_path / "whole"), short(out=tmp_path / "parts")
    assert run.distill(whole, display)
    assert not run.distill(parts, display, stopping_at(looks))
    assert not (parts.out / "config.json").exists()
    # Nothing in the process may matter, only what is on disk.
    torch.manual_seed(looks)
    assert run.distill(parts, display)
    assert weights(parts) == weights(whole)
    same = [
        [(p["tokens"], p["loss"], p["figures"]) for p in report(s)["curve"]] for s in (whole, parts)
    ]
    assert same[0] == same[1]


def test_where_the_looks_stop_a_run(short: Short, display: Display, tmp_path: Path) -> None:
    """Guards the test above: runs stop before training, in both kinds of sampling, and after."""
    found = []
    for looks in LOOKS:
        settings = short(out=tmp_path / str(looks))
        run.distill(settings, display, stopping_at(looks))
        if not state.checkpoint(settings.out).exists():
            found.append("preparing")
            continue
        now = state.load(settings.out, CPU)["state"]
        found.append(f"round {now.rounds}, step {now.step}, pending {now.pending is not None}")
    assert found == [
        "preparing",
        "round 0, step 0, pending False",
        "round 0, step 0, pending False",
        "round 1, step 11, pending True",
        "round 1, step 16, pending False",
    ]


@pytest.mark.parametrize(("on_policy", "looks"), [(0.0, 40), (0.5, 60), (1.0, 50)])
def test_the_teachers_states_belong_to_the_sampled_text(
    short: Short, display: Display, big: Teacher, on_policy: float, looks: int
) -> None:
    """Whoever sampled it: the states are those of a plain forward pass of the teacher."""
    settings = short(on_policy=on_policy)
    assert not run.distill(settings, display, stopping_at(looks))
    now = state.load(settings.out, CPU)["state"]
    assert now.step > 0
    assert len(now.pending) == ROUND * settings.batch
    for row in range(len(now.pending)):
        first, count = int(now.pending.first[row]), int(now.pending.count[row])
        with torch.no_grad():
            states = big.model.model(now.pending.tokens[row : row + 1])[0][0]
        wanted = states[first : first + count]
        torch.testing.assert_close(now.pending.teacher[row, :count], wanted, rtol=1e-4, atol=1e-4)


def test_another_seed_is_another_student(short: Short, display: Display, tmp_path: Path) -> None:
    one, two = short(out=tmp_path / "1"), short(out=tmp_path / "2", seed=1)
    assert run.distill(one, display)
    assert run.distill(two, display)
    assert weights(one) != weights(two)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.1}, "--lr 0.003, not --lr 0.1"),
        ({"loss": "tv"}, "--loss forward_kl, not --loss tv"),
        ({"layers": 2}, "--layers 1, not --layers 2"),
        ({"minutes": 1.0}, "no --minutes, not --minutes 1.0"),
    ],
)
def test_other_settings_do_not_go_on(
    short: Short, display: Display, changes: dict[str, Any], named: str
) -> None:
    run.distill(short(), display, stopping_at(40))
    with pytest.raises(StartupError, match=f"begun with {named}: .*--no-resume"):
        run.distill(short(**changes), display)
    assert run.distill(short(**changes, resume=False, tokens=200), display)
    assert report(short())["settings"] | changes == report(short())["settings"]


def test_another_teacher_does_not_go_on(
    short: Short, display: Display, tiny_with_tokenizer: Path
) -> None:
    run.distill(short(), display, stopping_at(40))
    with pytest.raises(StartupError, match="another teacher"):
        run.distill(short(teacher=tiny_with_tokenizer), display)


def test_a_damaged_checkpoint_is_named(short: Short, display: Display) -> None:
    run.distill(short(), display, stopping_at(40))
    file = state.checkpoint(short().out)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StartupError, match=r"distill\.pt cannot be read.*--no-resume"):
        run.distill(short(), display)


def test_folders_that_are_not_its_own(short: Short, display: Display, tmp_path: Path) -> None:
    finished = short(tokens=100)
    assert run.distill(finished, display)
    with pytest.raises(StartupError, match="holds a finished student"):
        run.distill(finished, display)
    foreign = short(out=tmp_path / "foreign", resume=False)
    foreign.out.mkdir()
    (foreign.out / "thesis.txt").write_text("mine")
    with pytest.raises(StartupError, match="was not made by divserve distill"):
        run.distill(foreign, display)
    assert [file.name for file in foreign.out.iterdir()] == ["thesis.txt"]
    with pytest.raises(StartupError, match="is a file"):
        run.distill(short(out=foreign.out / "thesis.txt"), display)


def test_two_runs_do_not_share_a_folder(short: Short, display: Display) -> None:
    settings = short()

    def meddle() -> bool:
        with pytest.raises(StartupError, match="another run is at work"):
            run.distill(settings, display)
        return True

    assert not run.distill(settings, display, meddle)


def test_layers_out_of_range_and_no_gpu(
    short: Short, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError, match="--layers 3: the teacher has 2"):
        run.distill(short(layers=3), display)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StartupError, match="no GPU"):
        run.distill(short(device="cuda"), display)


def test_without_matplotlib_there_is_a_report_without_a_curve(
    short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    settings, said = short(tokens=100), io.StringIO()
    assert run.distill(settings, Display(Console(file=said)))
    first = said.getvalue().splitlines()[0]
    assert first.startswith("no curve.svg will be drawn: matplotlib is not installed")
    assert "No curve was drawn" in (settings.out / "REPORT.md").read_text()
    assert not (settings.out / "curve.svg").exists()


def test_prompts_of_a_file_and_half_of_the_positions(
    short: Short, display: Display, tmp_path: Path
) -> None:
    prompts = [[1, 3 + index, 4, 5] for index in range(16)]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": ids}) for ids in prompts))
    settings = short(prompts=file, positions=0.5, tokens=1000)
    assert not run.distill(settings, display, stopping_at(40))
    now = state.load(settings.out, CPU)["state"]
    held = now.held_out.tokens[:, :4].tolist()
    assert sorted(now.prompts + held) == prompts
    assert run.distill(settings, display)
    account = report(settings)
    assert (account["prompts"], account["held_out_prompts"]) == (14, 2)
    assert account["settings"]["prompts"] == "p.jsonl"


def test_minutes_are_a_budget(short: Short, display: Display) -> None:
    settings = short(tokens=None, minutes=0.02)
    assert run.distill(settings, display)
    assert 1.2 <= report(settings)["seconds"] < 10


def test_bfloat16_autocast_as_on_a_gpu(
    short: Short, display: Display, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sampling", "evaluate", "train"):
        monkeypatch.setattr(
            f"divserve.distill.{module}.autocast",
            lambda device: torch.autocast("cpu", torch.bfloat16),
        )
    settings = short(tokens=3000)
    assert run.distill(settings, display)
    curve = report(settings)["curve"]
    assert curve[-1]["figures"]["kl"] < curve[0]["figures"]["kl"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(short: Short, display: Display) -> None:
    settings = short(device="cuda", tokens=6000)
    assert run.distill(settings, display)
    curve = report(settings)["curve"]
    assert curve[-1]["figures"]["kl"] < 0.9 * curve[0]["figures"]["kl"]


def test_a_terminal_gets_a_bar_and_a_log_lines(short: Short, tmp_path: Path) -> None:
    screen, log = io.StringIO(), io.StringIO()
    wide = Console(file=screen, force_terminal=True, width=120)
    with Display(wide) as bar:
        assert run.distill(short(), bar)
    with Display(Console(file=log)) as lines:
        assert run.distill(short(out=tmp_path / "log"), lines)
    assert "100 %" in screen.getvalue()
    assert "\x1b" not in log.getvalue()
    assert "→ loading the teacher\n" in log.getvalue()
    for text in (screen.getvalue(), log.getvalue()):
        assert text.count("same greedy token") == len(report(short())["curve"])
