"""The check of the built docs site, and of examples, finds what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.documented import Block, Example, blocks, curl, differs, examples, texts
from tests.support.documented_answers import filled
from tests.support.site import faults, main

GOOD = """<html><head><link rel="stylesheet" href="a.css"><script src="b.js"></script></head>
<body><h1 id="top">A</h1><a href="#top">up</a><a href="other/">other</a>
<a href="https://example.org/x">elsewhere</a><img src="c.svg"></body></html>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site without faults."""
    (tmp_path / "other").mkdir()
    for name in ("a.css", "b.js", "c.svg"):
        (tmp_path / name).write_text("")
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "other" / "index.html").write_text('<a href="../index.html#top">back</a>')
    return tmp_path


def test_a_good_site(site: Path) -> None:
    assert list(faults(site)) == []
    with pytest.raises(SystemExit) as ended:
        main(str(site))
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<img src="//cdn.example/x.png">', "loads //cdn.example/x.png"),
        ('<link rel="preconnect" href="https://fonts.example">', "loads https://fonts.example"),
        ('<pre class="mermaid">', "has a diagram that is drawn by a library of another host"),
        ('<a href="gone.html">x</a>', "links to gone.html"),
        ('<a href="index.html#gone">x</a>', "links to index.html#gone"),
        ('<img src="gone.svg">', "links to gone.svg"),
    ],
)
def test_a_fault_is_found(site: Path, html: str, fault: str) -> None:
    (site / "bad.html").write_text(html)
    assert list(faults(site)) == [f"bad.html {fault}"]


@pytest.mark.parametrize(
    "css", ["@import 'https://f.example/a.css';", "x { background: url(https://f.example/a.css) }"]
)
def test_a_style_sheet_of_another_host_is_found(site: Path, css: str) -> None:
    (site / "a.css").write_text(css)
    assert list(faults(site)) == ["a.css loads https://f.example/a.css"]


PAGE = """# A page

```sh title="served with --look-back"
curl -s http://127.0.0.1:8000/v1/completions \\
  -H 'Content-Type: application/json' -d '{"prompt": "a"}'
```

It answers

```json title="answers"
{"plain": "b"}
```

```sh
make serve
```

```python
print("x", 0.5)
```

```text title="output"
```
"""


def test_examples_of_a_page() -> None:
    first, second = examples(PAGE)
    assert first.flags == "--look-back"
    assert [block.title for block in first.outputs] == ["answers"]
    assert curl(first.request.text) == (
        "http://127.0.0.1:8000/v1/completions", {"prompt": "a"}
    )  # fmt: skip
    assert second.flags == ""
    assert [block.language for block in blocks(PAGE)] == ["sh", "json", "sh", "python", "text"]


def test_outputs_are_written_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(example: Example, place: object) -> dict[str, str]:
        return {"output": "x 0.5\n", "answers": '{"plain": "c"}\n'}

    monkeypatch.setattr("tests.support.documented_answers.outputs", outputs)
    new = PAGE.replace('title="output"\n', 'title="output"\nx 0.5\n')
    assert filled(PAGE, place=None) == new.replace('"b"', '"c"')  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "different"),
    [
        ("Mars, 0.1234 and 5", False),
        ("Mars, 0.1236 and 5", False),
        ("Mars, 0.125 and 5", True),
        ("Mars, 0.1234 and 6", True),
        ("Venus, 0.1234 and 5", True),
        ("Mars, 0.1234 and 0.5", True),
    ],
)
def test_what_counts_as_another_output(now: str, different: bool) -> None:
    assert differs(Block("text", "output", "Mars, 0.1234 and 5", 0, 0), now) is different


def test_the_texts_of_an_answer() -> None:
    assert texts({"choices": [{"text": "a"}]}) == "a"
    chat = [{"message": {"content": text}} for text in ("a", "b")]
    assert texts({"choices": chat}) == ["a", "b"]
    assert texts({"content": [{"type": "text", "text": "a"}]}) == "a"
    assert texts({"output": [{"content": [{"text": "a"}]}, {"content": [{"text": "b"}]}]}) == [
        "a",
        "b",
    ]
