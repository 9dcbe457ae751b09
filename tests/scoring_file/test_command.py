"""``divserve score`` as a user calls it, against the real application on a scripted engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divserve import cli
from divserve.scoring_file import display, run
from tests.support.fake_client import FakeClient, arguments
from tests.support.socket_server import listening


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.server import build_app

    args = arguments()
    engine = FakeClient(AsyncEngineArgs.from_cli_args(args).create_engine_config())
    app = asyncio.run(build_app(engine, args))  # type: ignore[arg-type]
    with listening(app, lifespan="on") as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    chat = [{"role": "user", "content": "The rain in Lyon. Where?"}]
    lines = [
        {"id": "a", "messages": chat, "answer": ["Lyon", "Paris, I think"]},
        {"id": "b", "messages": chat, "answer": "Lyon", "guide": {"without": "Where?"}},
        {"id": "c", "messages": chat, "answer": ""},
        {"id": "d", "messages": chat, "answer": "Lyon", "scores": ["loss", "zlib"]},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
def test_a_file(url: str, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = texts.with_name("out.jsonl")
    args = ["score", str(texts), "--out", str(out), "--url", url, "--scores", "loss,pmi,kl",
            "--guide", '{"without": "The rain in Lyon. "}', "--tokens"]  # fmt: skip
    assert cli.main(args) == 1
    said = capsys.readouterr()
    a, b, c, d = map(json.loads, out.read_text().splitlines())
    assert [text["scores"] for text in a["data"]] == [{"loss": 0.5, "pmi": 0, "kl": 0.5}] * 2
    assert [len(text["trace"]) for text in a["data"]] == [text["tokens"] for text in a["data"]]
    assert b["usage"]["guide_prompt_tokens"] > 0
    assert c["error"]["param"] == "answer"
    assert (d["error"]["param"], d["error"]["code"]) == ("scores.1", "score_unavailable")
    assert "2 of 4 lines failed:\n  line 3 (c): answer: " in said.err
    assert "│ loss  │ less likely text" in said.out
    assert said.out.endswith("out.jsonl is ready\n")
    assert cli.main(args) == 1
    assert capsys.readouterr() == said


def test_mistakes_are_one_line(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divserve.scoring_file.client.RETRIES", 0)
    out = texts.with_name("out.jsonl")
    for more, told in [
        (["--out", "x.csv"], "must end in .jsonl or .parquet"),
        (["--out", str(out), "--url", "http://127.0.0.1:9"], "does not list scores"),
        (["--out", str(out), "--parallel", "0"], "'--parallel'"),
        ([], "--out"),
    ]:
        assert cli.main(["score", str(texts), *more]) == 2
        said = capsys.readouterr()
        assert told in said.err
        assert said.err.count("\n") == 1
    assert not out.exists()


def test_options_progress_and_ctrl_c(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    row = {"larger_means": "x", "count": 2, "null": 1, "mean": 1.0, "sampled": True}
    failure = {"line": 3, "id": None, "error": {"message": "No."}}
    summary: dict[str, Any] = {
        "lines": 9, "texts": 7, "tokens": 5, "failed": 3, "failures": [failure],
        "scores": {"loss": row},
    }  # fmt: skip

    async def score_file(settings: Any, progress: Any) -> dict[str, Any]:
        seen.append(settings)
        progress(5, 9, 0)
        progress(6, 9, 2)
        if settings.parallel == 1:
            raise KeyboardInterrupt
        return summary

    monkeypatch.setattr(run, "score_file", score_file)
    monkeypatch.setattr(display, "LINE_S", -1)
    monkeypatch.setenv("DIVSERVE_API_KEY", "secret")
    args = ["score", str(texts), "--out", "o.parquet", "--k", "0.1", "--top-logprobs", "2"]
    assert cli.main([*args, "--no-resume", "--model", "m", "--method", "cad"]) == 1
    said = capsys.readouterr()
    assert "5 of 9 lines\n6 of 9 lines, 2 failed\n" in said.err
    assert "3 of 9 lines failed:\n  line 3: No.\n  and 2 more, in the output\n" in said.err
    assert "random sample of a million values" in said.out
    assert seen[0].fields == {"method": "cad", "k": 0.1, "top_logprobs": 2}
    assert (seen[0].key, seen[0].model, seen[0].resume) == ("secret", "m", False)
    summary.update(failed=0)
    assert cli.main([*args, "--api-key", "other"]) == 0
    assert seen[1].key == "other"
    assert "failed" not in capsys.readouterr().out
    assert cli.main([*args, "--parallel", "1"]) == 130
    assert "the same command goes on from o.parquet.partial" in capsys.readouterr().err
