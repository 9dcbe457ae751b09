"""Examples in the documents: requests, and what the documents say that they answer.

A request is a fenced block of ``sh`` that calls curl, or one of ``python``. The blocks right behind
it with one of these titles are its outputs:

    ```json title="answers"      the text (or texts, if n > 1) without a method and with it
    ```json title="decoding"     the account of the first choice, without its trace
    ```json title="trace"        its trace, one line a token
    ```text title="output"       what the Python code prints

A request whose own title names flags, such as ``served with --look-back``, needs a server
with them. `tests/e2e/test_documented.py` compares the outputs with those of a server, and
``python -m tests.support.documented_answers`` writes them.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["OUTPUTS", "Block", "Example", "Place", "blocks", "differs", "examples", "outputs"]

OUTPUTS = ("answers", "decoding", "trace", "output")
FENCE = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
ADDRESS, MODEL, NO_KEY = "http://127.0.0.1:8000", "smollm2-135m-instruct", 'api_key="none"'
"""What the documents say, and `Place` replaces."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str
    start: int
    """Where its text begins in the page, in characters."""
    end: int


@dataclass(frozen=True)
class Example:
    """A request and the blocks that show its outputs."""

    request: Block
    outputs: list[Block] = field(default_factory=list)

    @property
    def flags(self) -> str:
        """The flags of the server that it needs; empty for the default one."""
        return self.request.title.partition("served with ")[2]


@dataclass(frozen=True)
class Place:
    """A server of SmolLM2, where the documents say 127.0.0.1:8000."""

    url: str
    model: str = MODEL
    key: str = "none"

    def here(self, text: str) -> str:
        """A request of the documents, for this server."""
        text = text.replace(ADDRESS, self.url).replace(MODEL, self.model)
        return text.replace(NO_KEY, f'api_key="{self.key}"')

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a body.

        Raises:
            urllib.error.HTTPError: the server rejects it.
        """
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in FENCE.finditer(page):
        title = found["title"] or ""
        yield Block(found["language"], title, found["text"], found.start("text"), found.end("text"))


def examples(page: str) -> list[Example]:
    """The requests of a page that show an output."""
    found: list[Example] = []
    for block in blocks(page):
        if block.title in OUTPUTS and found:
            found[-1].outputs.append(block)
        else:
            found.append(Example(block))
    return [example for example in found if example.outputs]


def outputs(example: Example, place: Place) -> dict[str, str]:
    """What a server answers to an example now: the text of each of its blocks, by title."""
    if example.request.language == "python":
        return {"output": printed(place.here(example.request.text))}
    url, body = curl(place.here(example.request.text))
    answer = place.post(url, body)
    if "data" in answer:
        return {"answers": scores(answer)}
    account = answer.get("choices", [answer])[0].get("decoding", {})
    trace = ",\n ".join(json.dumps(entry, ensure_ascii=False) for entry in account.pop("trace", []))
    shown = {"decoding": json.dumps(account, ensure_ascii=False) + "\n", "trace": f"[{trace}]\n"}
    if any(block.title == "answers" for block in example.outputs):
        bare = {name: value for name, value in body.items() if name != "decoding"}
        bare["model"] = body["model"].partition("@")[0]
        both = {
            "plain": texts(place.post(url, bare)),
            account.get("method", "answer"): texts(answer),
        }
        shown["answers"] = json.dumps(both, indent=1, ensure_ascii=False) + "\n"
    return shown


def scores(answer: dict[str, Any]) -> str:
    """What an answer of ``/v1/decoding/score`` says of each text."""
    shown = [{name: one[name] for name in ("index", "tokens", "scores")} for one in answer["data"]]
    return json.dumps(shown, indent=1) + "\n"


def texts(answer: dict[str, Any]) -> str | list[str]:
    """The texts of an answer of any route; one text alone if there is one."""
    if "choices" in answer:
        found = [choice.get("text") or choice["message"]["content"] for choice in answer["choices"]]
    else:
        parts = answer.get("content") or [p for item in answer["output"] for p in item["content"]]
        found = [part["text"] for part in parts]
    return found[0] if len(found) == 1 else found


def curl(command: str) -> tuple[str, dict[str, Any]]:
    """Address and body of a command ``curl … URL … -d BODY``."""
    words = shlex.split(command.replace("\\\n", " "))
    (url,) = (word for word in words if word.startswith("http://"))
    return url, json.loads(words[words.index("-d") + 1])


def printed(source: str) -> str:
    """What Python code prints, in a process of its own.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    command = [sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def differs(block: Block, now: str) -> bool:
    """Whether an output is another than a page says: another text, or a number in three digits."""
    numbers = [[float(x) for x in NUMBER.findall(text)] for text in (block.text, now)]
    words = [NUMBER.sub("#", text) for text in (block.text, now)]
    return words[0] != words[1] or not all(
        math.isclose(a, b, rel_tol=5e-3, abs_tol=5e-4) for a, b in zip(*numbers, strict=True)
    )
