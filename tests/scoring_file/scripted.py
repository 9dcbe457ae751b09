"""A scripted server in the place of the client, and small files of numbers."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divserve.errors import StartupError
from divserve.scoring_file import run
from divserve.scoring_file.client import Refused
from divserve.scoring_file.settings import Settings

__all__ = ["Scripted", "numbers", "records", "scored", "written"]

LISTED = {
    "loss": {"larger_means": "less likely text", "available": True, "needs": []},
    "pmi": {"larger_means": "leans", "available": True, "needs": ["guide"]},
    "zlib": {"larger_means": "familiar", "available": False, "needs": [], "membership": True},
    "binoculars": {"available": False, "needs": ["amateur"], "membership": False},
}


class Scripted:
    """The loss of a text is its number; answers come in random order."""

    bodies: list[dict[str, Any]]
    fail_at = 10**6
    stop_at = 10**6
    at_once = most_at_once = 0

    def __init__(self, url: str, key: str | None) -> None:
        self.draw = random.Random(1)

    async def close(self) -> None: ...

    async def scores(self) -> dict[str, dict[str, Any]]:
        return LISTED

    async def model(self) -> str:
        return "smol"

    async def score(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if len(Scripted.bodies) == Scripted.stop_at:
            signal.raise_signal(signal.SIGINT)
        if len(Scripted.bodies) >= Scripted.fail_at:
            raise StartupError("the server has left")
        Scripted.bodies.append(dict(body))
        Scripted.at_once += 1
        Scripted.most_at_once = max(Scripted.most_at_once, Scripted.at_once)
        await asyncio.sleep(self.draw.random() / 500)
        Scripted.at_once -= 1
        given = body["input"]
        if given == "bad":
            raise Refused({"message": "'input' is bad.", "param": "input", "code": "invalid_value"})
        texts = [given] if isinstance(given, str) else given
        data = [
            {"object": "score", "index": place, "tokens": 3, "larger_means": {},
             "scores": {"loss": float(text) if text != "none" else None}}
            for place, text in enumerate(texts)
        ]  # fmt: skip
        return {"object": "list", "data": data, "usage": {"prompt_tokens": 4}}


def written(path: Path, *lines: Any) -> Path:
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def numbers(folder: Path, count: int = 40) -> Path:
    return written(
        folder / "in.jsonl", *({"id": f"t{n}", "input": str(n)} for n in range(1, 1 + count))
    )


def scored(file: Path, out: Path, **options: Any) -> dict[str, Any]:
    settings = Settings(file, out, "http://x", **{"parallel": 4, **options})
    return asyncio.run(run.score_file(settings, lambda *_: None))


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
