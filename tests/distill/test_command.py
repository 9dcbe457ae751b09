"""``divserve distill`` as a user runs it: in its own process."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from divserve import cli

COMMAND = (sys.executable, "-W", "error", "-m", "divserve", "distill")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    for args, named in [
        ([nowhere, "--layers", "1", "--out", nowhere], "no config.json"),
        ([nowhere, "--layers", "1"], "--out"),
        (
            [nowhere, "--layers", "1", "--out", nowhere, "--loss", "mse"],
            "'--loss': 'mse' is not one of 'forward_kl', 'reverse_kl'",
        ),
    ]:
        assert cli.main(["distill", *args]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert named in captured.err
        assert captured.err.count("\n") == 1
    assert not Path(nowhere).exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--layers", "0"), ("--positions", "0"), ("--positions", "1.5"), ("--on-policy", "-0.1"),
     ("--lr", "0"), ("--lr", "inf"), ("--beta", "1"), ("--minutes", "0"), ("--minutes", "inf"),
     ("--tokens", "0"), ("--batch", "0"), ("--length", "0"), ("--passes", "0"),
     ("--self-prompts", "1"), ("--hidden-weight", "-1"), ("--temperature", "nan"),
     ("--self-prompts", "1000001"), ("--tokens", f"{10**16}"), ("--batch", "65537"),
     ("--passes", "1001")],
)  # fmt: skip
def test_values_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    nowhere = str(tmp_path / "nowhere")
    args = ["distill", nowhere, "--layers", "1", "--out", nowhere, f"{option}={value}"]
    assert cli.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"divserve: Invalid value for '{option}': Input should be ")
    assert error.count("\n") == 1


def test_a_length_that_the_teacher_cannot_read(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["distill", str(tiny), "--layers", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*args, "--length", "9999999"]) == 2
    assert "--length 9999999: the teacher's context has " in capsys.readouterr().err


def test_the_help_shows_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option, kind, limits in [
        ("--layers", "int", "x>=1"), ("--beta", "float", "0.01<=x<=0.99"),
        ("--on-policy", "float", "0<=x<=1"), ("--lr", "float", "1e-09<=x<=1"),
    ]:  # fmt: skip
        assert re.search(f"{option} <{kind} range>[^<]*{re.escape(limits)}", shown)


def test_ctrl_c_leaves_a_checkpoint_from_which_it_goes_on(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = (*COMMAND, str(tiny), "--layers", "1", "--out", str(out), "--length", "12",
            "--self-prompts", "40", "--minutes", "0.05")  # fmt: skip
    with subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (out / "distill.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (
        130, f"stopped: the same command goes on from {out}\n"
    )  # fmt: skip
    again = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert "going on after" in again.stdout
    assert again.stdout.endswith(f"its figures are in {out / 'REPORT.md'}\n")
    assert {"config.json", "model.safetensors", "REPORT.md", "report.json", "curve.svg"} <= {
        file.name for file in out.iterdir()
    }
    assert not (out / "distill.pt").exists()
