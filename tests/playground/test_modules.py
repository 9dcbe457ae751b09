"""The page's modules without the page: what they compute, asked of Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from divserve.decoding import METHODS
from tests.support.fake_openai import running
from tests.support.fake_playground import FakeApi, described


@pytest.fixture(scope="module")
def modules(browser: Browser) -> Iterator[Page]:
    """A page from which the modules can be imported."""
    page = browser.new_page()
    with running(FakeApi().app()) as url:
        page.goto(f"{url}/playground/")
        yield page
    page.close()


def ask(page: Page, module: str, code: str, value: Any = None) -> Any:
    """What the expression `code` of the module `m` and the value `x` gives."""
    return page.evaluate(
        f"async (x) => {{ const m = await import('./{module}.js'); return {code}; }}", value
    )


def test_events_come_in_any_pieces(modules: Page) -> None:
    text = ': hello\n\ndata: {"a":1}\n\ndata: é\r\n\r\nevent: x\ndata: one\ndata:two\n\ndata: open'
    for size in (1, 3, 7, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        code = "(() => { const p = new m.EventParser(); return x.flatMap((t) => p.push(t)); })()"
        assert ask(modules, "sse", code, pieces) == ['{"a":1}', "é", "one\ntwo"]


def test_a_state_survives_the_fragment(modules: Page) -> None:
    state = {
        "prompt": "a & b = c #1\n“ü” 100%", "document": "d+d", "system": "s", "colour": "jsd",
        "tokens": 7, "temperature": 0.5, "seed": 3, "top": 2,
        "columns": [
            {"method": "plain", "parameters": {}},
            {"method": "vdgd", "parameters": {"grounding": 'a "b" {c}\nd', "reduce": "avg"}},
        ],
    }  # fmt: skip
    assert ask(modules, "state", "m.decode('#' + m.encode(x))", state) == state


@pytest.mark.parametrize(
    "fragment",
    ["", "#", "%E0%A4%A", "with=a b", "with=cad {", "tokens=many&top=-1&seed=", "tokens=1e9", "x"],
)
def test_a_broken_fragment_is_the_first_page(modules: Page, fragment: str) -> None:
    assert ask(modules, "state", "m.decode(x)", fragment) == ask(modules, "state", "m.initial()")


def test_a_fragment_has_four_columns_at_most(modules: Page) -> None:
    fragment = "prompt=hi&" + "&".join(["with=cad"] * 9)
    found = ask(modules, "state", "m.decode(x)", fragment)
    assert len(found["columns"]) == 4
    assert found["document"] == "", "another question has not the first page's document"


@pytest.mark.parametrize(
    ("name", "values", "levels"),
    [
        ("kl", [-1, 0, 2.5, 5, 9], [0, 0, 0.5, 1, 1]),
        ("candidates", [1, 1000**0.5, 1000, 49_152], [0, 0.5, 1, 1]),
        ("unknown_figure", [0.25], [0.25]),
        ("kl", [None], [None]),
    ],
)
def test_levels(modules: Page, name: str, values: list[Any], levels: list[Any]) -> None:
    found = ask(modules, "scale", "x.values.map((v) => m.level(x.name, v))",
                {"name": name, "values": values})  # fmt: skip
    assert found == [level if level is None else pytest.approx(level) for level in levels]


def test_ticks_are_in_the_order_of_levels(modules: Page) -> None:
    names = ask(modules, "figures", "Object.keys(m.FIGURES)")
    for name in [*names, "unknown_figure"]:
        marks = ask(modules, "scale", "m.ticks(x)", name)
        assert [mark["level"] for mark in marks] == sorted(mark["level"] for mark in marks)
        assert marks[-1]["level"] == 1
    assert ask(modules, "scale", "m.ticks('model')")[1] == {"level": 1, "text": "large"}


def test_every_figure_that_a_method_reports_is_explained(modules: Page) -> None:
    known = ask(modules, "figures", "Object.keys(m.FIGURES)")
    reported = {name for method in METHODS.values() for name in method.reports}
    assert reported <= {*known}


STATE = {
    "prompt": "Q", "document": "", "system": "", "colour": "kl", "tokens": 9, "temperature": 0,
    "seed": 1, "top": 5, "columns": [],
}  # fmt: skip


def body(page: Page, method: str, parameters: Any = None, **more: Any) -> Any:
    """The request of a column, or the error that is told instead."""
    found = method != "plain" and described(method, METHODS[method], frozenset())
    column = {"method": method, "parameters": parameters or {}}
    code = """(() => {
        try { return m.bodyOf(x.state, x.column, x.method || undefined, "smol"); }
        catch (error) { return {error: error.message, place: error.place}; }
    })()"""
    given = {"state": {**STATE, **more}, "column": column, "method": found}
    return ask(page, "request", code, given)


def test_requests_of_all_methods_are_valid(modules: Page) -> None:
    """As the server itself reads the field."""
    from pydantic import TypeAdapter

    from divserve.decoding import Decoding

    adapter: TypeAdapter[Any] = TypeAdapter(Decoding)
    for name in METHODS:
        parameters = {"grounding": "G"} if name == "vdgd" else {}
        sent = body(modules, name, parameters, document="D", system="S")
        assert adapter.validate_python(sent["decoding"]).method == name


def test_the_guide_is_the_request_without_its_document(modules: Page) -> None:
    sent = body(modules, "cad", {"alpha": 2}, document="D", system="S")
    assert sent["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q\n\nD"},
    ]
    assert sent["decoding"] == {
        "method": "cad", "alpha": 2, "guide": {"without": "D"}, "trace": {"top": 5},
    }  # fmt: skip
    assert body(modules, "linear_alignment", system="S")["decoding"]["guide"] == {"without": "S"}
    assert "guide" not in body(modules, "instructive", document="D", system="S")["decoding"]
    assert "guide" not in body(modules, "cfg")["decoding"]
    assert body(modules, "cfg", top=0)["decoding"]["trace"] is True
    plain = body(modules, "plain", temperature=1)
    assert "decoding" not in plain
    assert (plain["seed"], plain["top_logprobs"]) == (1, 5)


@pytest.mark.parametrize(
    ("method", "more", "place"),
    [
        ("plain", {"prompt": " "}, "prompt"),
        ("cad", {}, "document"),
        ("vdgd", {}, "decoding.grounding"),
    ],
)
def test_mistakes_are_told_before_the_server_is_asked(
    modules: Page, method: str, more: dict[str, Any], place: str
) -> None:
    found = body(modules, method, **more)
    assert found["place"] == place
    assert found["error"].endswith(".")


def test_python_literals(modules: Page) -> None:
    value = {"a": [1, 0.5, None, True, False, 'it\'s\n"ü"'], "b": {}, "c": "x" * 90, "d": []}
    written = ask(modules, "snippets", "m.literal(x)", value)
    assert eval(written) == json.loads(json.dumps(value))
    short = ask(modules, "snippets", "m.literal(x)", {"a": True})
    assert short == '{"a": True}'


def test_characters_that_are_split_between_tokens(modules: Page) -> None:
    halves = [[0xF0, 0x9F, 0xA6], [0x8A]]
    chunks = [
        {"choices": [{"delta": {}, "decoding": {"trace": [
            {"token": "�", "token_id": 1, "bytes": half, "entropy": 1}]}}]}
        for half in halves
    ]  # fmt: skip
    code = (
        "(() => { const a = new m.Answer(true); x.forEach((c) => a.add(c)); return a.tokens; })()"
    )
    assert [token["text"] for token in ask(modules, "answer", code, chunks)] == ["", "🦊"]


def test_surprises_wait_for_tokens_that_a_parser_holds_back(modules: Page) -> None:
    entries = [{"token": t, "token_id": 1, "bytes": [*t.encode()]} for t in "ab"]
    scored = [{"token": t, "logprob": -n} for n, t in enumerate("ab", 1)]
    chunks = [
        {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": scored},
                      "decoding": {"trace": entries[:1]}}]},
        {"choices": [{"delta": {"content": "b"}, "finish_reason": "stop",
                      "decoding": {"method": "cad", "applied_steps": 2, "trace": entries[1:]}}]},
    ]  # fmt: skip
    code = "(() => { const a = new m.Answer(true); x.forEach((c) => a.add(c)); return a; })()"
    found = ask(modules, "answer", code, chunks)
    assert [token["figures"]["surprise"] for token in found["tokens"]] == [1, 2]
    assert found["content"] == "ab"
    assert found["summary"] == {"method": "cad", "applied_steps": 2}


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.004, "<1 %"), (0.5, "50 %"), (0.999, ">99 %"), (1, "100 %")]
)
def test_probabilities_are_read_as_percent(modules: Page, share: float, text: str) -> None:
    assert ask(modules, "card", "m.percent(x)", share) == text
