"""How look-back decoding affects text: repetition and coherence against other ways of decoding.

SmolLM2 continues 64 openings (32 by Jane Austen, whose own continuation is the human reference, and
32 expository ones) through /v1/completions of a server that this starts, or of a running one.
Locally typical sampling, which vLLM lacks, comes from transformers, in float32. Every text is
tokenised anew by the model's tokenizer before anything is counted. All texts and figures go to
bench/out/look_back_effect-*.json, where those of other sides are kept.

    python -m bench.look_back_effect --embedding FOLDER --record     # docs/look_back_effect.md
    python -m bench.look_back_effect --only greedy --only nucleus    # some sides
    python -m bench.look_back_effect --only look_back --look-back 0.8:5 --look-back 0.8:10
"""

from __future__ import annotations

import json
import os
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import plot_look_back
from bench.texts import Embedder, coherence, diversity, rep_n
from loadtest import record
from tests.support.models import ROOT, SMOLLM2
from tests.support.server import API_KEY, serving

OPENINGS = ROOT / "tests" / "data" / "openings.jsonl"
OUT = ROOT / "bench" / "out"
CONCURRENCY = 8
LOOK_BACK = ("0.25:8", "0.5:8", "1:8", "1.6:8", "1:5", "1:10")
"""threshold:k. The paper tunes them within 0.5 to 1.6 nats and 5 to 10 candidates."""
TYPICAL = (0.2, 0.92)
KINDS = ("novels", "expository texts")
ALARMS = "alarms a token"
DIGITS = {"rep-2": 2, "rep-3": 2, "rep-4": 2, "diversity": 3, "coherence": 3, "tokens": 1}
"""Figures of a text; the reps in percent."""

Text = dict[str, Any]
"""An opening, or one continuation: its ``text``, and in the end its figures."""
Step = Callable[[int], None]
"""Called with the number of texts that are done."""
Side = tuple[str, list[Text], float]
"""Name, texts, and the seconds they took."""


def sides(look_back: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The parameters of each side by its name; typical sampling does not use the server."""
    found: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0},
        "nucleus 0.95": {"temperature": 1, "top_p": 0.95},
    }
    found |= {f"typical {mass}": {"typical_p": mass} for mass in TYPICAL}
    for pair in look_back:
        threshold, k = pair.split(":")
        method = {"method": "look_back", "threshold": float(threshold), "k": int(k)}
        found[f"look_back α={threshold} k={k}"] = {
            "temperature": 0,
            "decoding": {**method, "window": 128, "reference": "prefix+generated"},
        }
    return found


def post(url: str, route: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON answer to a POST, or to a GET if there is no body."""
    request = urllib.request.Request(
        f"{url}/v1/{route}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=1200) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{route}: {error.read().decode()}") from error


def served(
    openings: list[Text], url: str, side: dict[str, Any], tokens: int, step: Step
) -> list[Text]:
    """Continuations from the server, `CONCURRENCY` at once; each opening has its own seed."""
    model = post(url, "models")["data"][0]["id"]

    def one(numbered: tuple[int, Text]) -> Text:
        seed, opening = numbered
        body = {"model": model, "prompt": opening["text"], "max_tokens": tokens, "seed": seed}
        (choice,) = post(url, "completions", body | side)["choices"]
        step(1)
        return {key: choice[key] for key in ("text", "decoding") if key in choice}

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(one, enumerate(openings)))


def typical(openings: list[Text], mass: float, tokens: int, step: Step) -> list[Text]:
    """Locally typical sampling at temperature 1 (Meister et al. 2023)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
    torch.manual_seed(0)
    texts: list[Text] = []
    for start in range(0, len(openings), 2 * CONCURRENCY):
        some = [opening["text"] for opening in openings[start : start + 2 * CONCURRENCY]]
        inputs = tokenizer(some, padding=True, return_tensors="pt")
        written = model.generate(
            **inputs, do_sample=True, typical_p=mass, top_k=0, max_new_tokens=tokens
        )[:, inputs["input_ids"].shape[1] :]
        texts += [{"text": t} for t in tokenizer.batch_decode(written, skip_special_tokens=True)]
        step(len(some))
    return texts


def generate(
    asked: dict[str, dict[str, Any]], openings: list[Text], tokens: int, url: str, report: Progress
) -> Iterator[Side]:
    """The texts of each requested side."""

    def timed(name: str, make: Callable[..., list[Text]], *how: Any) -> Side:
        task = report.add_task(name, total=len(openings))
        start = time.perf_counter()
        texts = make(openings, *how, tokens, lambda n: report.advance(task, n))
        return name, texts, time.perf_counter() - start

    by_server = {name: side for name, side in asked.items() if "typical_p" not in side}
    for name, side in asked.items():
        if name not in by_server:
            yield timed(name, typical, side["typical_p"])
    if not by_server:
        return
    flags = ["--look-back"] if any("decoding" in side for side in by_server.values()) else []
    own = serving(SMOLLM2, OUT / "look_back_effect.log", flags)
    with nullcontext((url, None)) if url else own as (address, _):
        for name, side in by_server.items():
            yield timed(name, served, address, side)


def human(openings: list[Text], tokenizer: Any, tokens: int) -> list[Text]:
    """How the novels continue, cut to as many tokens as a model may write."""
    ids = [tokenizer.encode(" " + opening["continuation"])[:tokens] for opening in openings]
    return [{"text": tokenizer.decode(some)} for some in ids]


def measure(openings: list[Text], texts: list[Text], tokenizer: Any, embed: Embedder) -> None:
    """Adds the figures to the texts."""
    cosines = coherence(embed, [o["text"] for o in openings], [t["text"] for t in texts])
    for opening, text, cosine in zip(openings, texts, cosines, strict=True):
        ids = tokenizer.encode(text["text"], add_special_tokens=False)
        text |= {"id": opening["id"], "kind": KINDS["continuation" not in opening]}
        text |= {f"rep-{n}": rep_n(ids, n) for n in (2, 3, 4)}
        text |= {"diversity": diversity(ids), "coherence": cosine, "tokens": len(ids)}
        if "alarm" in (mean := text.get("decoding", {}).get("mean", {})):
            text[ALARMS] = mean["alarm"]


def figures(name: str, texts: list[Text], case: str) -> list[dict[str, str]]:
    """Means over the texts, and the interval of two standard errors around them."""
    lines = []
    for figure, digits in {**DIGITS, ALARMS: 3}.items():
        values = [text[figure] for text in texts if figure in text]
        if len(values) > 1:
            mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
            low, high = max(mean - 2 * error, min(values)), min(mean + 2 * error, max(values))
            spread = f"{low:.{digits}f} to {high:.{digits}f}"
            value = f"{mean:.{digits}f}"
            metric = f"{name}: {figure}"
            lines.append({"case": case, "metric": metric, "value": value, "spread": spread})
    return lines


def main(
    tokens: Annotated[int, typer.Option(help="Tokens per continuation; paper: 256.")] = 128,
    look_back: Annotated[list[str], typer.Option(help="threshold:k")] = list(LOOK_BACK),  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Sides whose names start with this.")] = [],  # noqa: B006
    url: Annotated[str, typer.Option(help="A running server with --look-back.")] = "",
    embedding: Annotated[
        Path | None, typer.Option(help="all-MiniLM-L6-v2; none: SmolLM2's hidden states.")
    ] = None,
    first: Annotated[int, typer.Option(help="How many openings of each kind.")] = 32,
    recorded: Annotated[
        bool, typer.Option("--record", help="Add the tables to bench/results.csv.")
    ] = False,
) -> None:
    """Generate, print a table for each kind of opening, and draw what is recorded."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    lines = [json.loads(line) for line in OPENINGS.read_text(encoding="utf-8").splitlines()]
    novels = [line for line in lines if "continuation" in line][:first]
    openings = novels + [line for line in lines if "continuation" not in line][:first]
    asked = {
        name: side
        for name, side in sides(look_back).items()
        if not only or name.startswith(tuple(only))
    }
    OUT.mkdir(exist_ok=True)
    out = OUT / f"look_back_effect-{first}x{tokens}.json"
    before = json.loads(out.read_text(encoding="utf-8"))["sides"] if out.exists() else {}
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    study = before | {"human": {"texts": human(novels, tokenizer, tokens)}}
    with Progress(console=Console(stderr=True)) as progress:
        for name, texts, seconds in generate(asked, openings, tokens, url, progress):
            study[name] = {"seconds": seconds, "texts": texts}
            _save(out, {"sides": study})
    embed = Embedder.load(embedding or SMOLLM2, "MiniLM" if embedding else "SmolLM2")
    for side in study.values():
        measure(openings[: len(side["texts"])], side["texts"], tokenizer, embed)
    _save(out, {"embedding": embed.name, "sides": study})

    found = []
    for kind in KINDS:
        case = f"smollm2, {first} {kind}, {tokens} tokens, coherence by {embed.name}"
        table = Table("decoding", *DIGITS, ALARMS, "s, all", title=case)
        for name, side in study.items():
            some = figures(name, [t for t in side["texts"] if t["kind"] == kind], case)
            values = {line["metric"].split(": ")[1]: line["value"] for line in some}
            took = f"{side['seconds']:.0f}" if "seconds" in side else "–"
            if values:
                table.add_row(name, *(values.get(f, "–") for f in (*DIGITS, ALARMS)), took)
            found += some
        Console(width=120).print(table)
    if recorded:
        command = record.asked("bench.look_back_effect")
        record.append("look_back_effect", command, found)
        plot_look_back.main()


def _save(out: Path, study: dict[str, Any]) -> None:
    out.write_text(json.dumps(study, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
