"""What holds on every route that takes ``decoding``, on a scripted engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve.api import instrumentation, routes
from divserve.decoding import presets
from divserve.http.paths import CHAT, CHAT_BATCH, GUIDED_ROUTES, MESSAGES, RESPONSES
from tests.support.chat import CAD, DOCUMENT, QUESTION, guided
from tests.support.fake_client import ANSWER, FakeClient, arguments
from tests.support.routes import CHATS, ROUTES, STREAMED, TEXT, TOKENS, Route, events_of

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

TRACED = guided(trace=True)
PICTURE = "data:image/png;base64,iVBORw0KGgo="
OPENAI = {"type": "image_url", "image_url": {"url": PICTURE}}
PICTURES: dict[str, Any] = {
    CHAT: [{"role": "user", "content": [OPENAI]}],
    CHAT_BATCH: [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": [OPENAI]}]],
    RESPONSES: [{"role": "user", "content": [{"type": "input_image", "image_url": PICTURE}]}],
    MESSAGES: [
        {
            "role": "user",
            "content": [
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                }
            ],
        }
    ],
}
of_all = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
of_chats = pytest.mark.parametrize("route", CHATS.values(), ids=CHATS)
of_streams = pytest.mark.parametrize("route", STREAMED.values(), ids=STREAMED)


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> FastAPI:
    from divserve.server import build_app

    args = arguments()
    given = {"gone": guided(guide={"without": "nowhere"}), "strong": {"method": "cfg"}}
    args.decodings = presets.load([], given)
    return asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]


def ask(http: TestClient, route: Route, **fields: Any) -> Any:
    return http.post(route.path, json={**route.body, **fields})


def answer_of(http: TestClient, route: Route, **fields: Any) -> Any:
    response = ask(http, route, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def error_of(response: Any) -> tuple[int, str | None]:
    """Status and param, of an error in the shape of all routes."""
    body = response.json()
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body.get("type") == ("error" if response.url.path == MESSAGES else None)
    return response.status_code, body["error"]["param"]


def test_these_are_all_routes() -> None:
    assert set(ROUTES) == set(GUIDED_ROUTES)


@of_all
def test_the_account_of_an_answer(http: TestClient, engine: FakeClient, route: Route) -> None:
    answer = answer_of(http, route, decoding=TRACED)
    account = route.account(answer)
    assert route.text(answer) == ANSWER
    assert (account["method"], account["applied_steps"]) == ("cad", TOKENS)
    assert "".join(entry["token"] for entry in account["trace"]) == ANSWER
    (order,) = engine.orders
    assert account["guide_prompt_tokens"] == len(order["guides"][0])


@of_all
def test_a_plain_answer_has_none(http: TestClient, engine: FakeClient, route: Route) -> None:
    for fields in ({}, {"decoding": None}):
        response = ask(http, route, **fields)
        assert route.text(response.json()) == ANSWER
        assert "decoding" not in response.text
    assert engine.orders == [None, None]


@of_chats
@pytest.mark.parametrize(
    "guide",
    [
        {"without": DOCUMENT},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "A"},
            ]
        },
    ],
    ids=["without", "messages"],
)
def test_every_chat_has_the_same_guide(
    http: TestClient, engine: FakeClient, route: Route, guide: Any
) -> None:
    for one in (CHATS[CHAT], route):
        answer_of(http, one, decoding=[{"method": "cad", "guide": guide}])
    assert engine.orders[0] == engine.orders[1]
    text = engine.renderer.tokenizer.decode(engine.orders[0]["guides"][0])
    assert (QUESTION in text) == ("without" in guide)
    assert DOCUMENT.strip() not in text


@of_streams
def test_a_stream_has_the_same_account(http: TestClient, route: Route) -> None:
    account = route.account(answer_of(http, route, decoding=TRACED))
    response = ask(http, route, decoding=TRACED, stream=True)
    assert response.headers["x-accel-buffering"] == "no"
    events = events_of(response.text)
    assert route.summary is not None
    (summary,) = (found for event in events if (found := route.summary(*event)))
    carried = [entry for event in events for entry in route.entries(*event)]
    assert carried == account["trace"]
    if route.path == RESPONSES:
        # The last event repeats the response as a whole.
        assert summary == account
    else:
        del account["trace"], summary["trace"]
        assert summary == account


@of_streams
def test_a_plain_stream_has_none(http: TestClient, route: Route) -> None:
    response = ask(http, route, stream=True)
    assert response.status_code == 200
    assert "decoding" not in response.text


@of_all
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ({"method": "nope"}, "decoding.method"),
        (guided(alpha=-1), "decoding.alpha"),
        ([guided(), guided("adacad")], "decoding"),
        (guided(guide={"without": [DOCUMENT, "no"]}), "decoding.guide.without.1"),
        (guided(guide={"model": "nobody"}), "decoding.guide.model"),
        ({"method": "look_back"}, "decoding.method"),
        (5, "decoding"),
    ],
)
def test_what_is_no_decoding(
    http: TestClient, route: Route, stream: bool, decoding: Any, param: str
) -> None:
    if stream and route.summary is None:
        return
    response = ask(http, route, decoding=decoding, stream=stream)
    status = 404 if param == "decoding.guide.model" else 400
    assert error_of(response) == (status, param)


@of_chats
def test_chats_take_no_prompt_as_a_guide(http: TestClient, route: Route) -> None:
    response = ask(http, route, decoding=guided(guide={"prompt": "x"}))
    assert error_of(response) == (400, "decoding.guide.prompt")


@pytest.mark.parametrize("path", PICTURES)
def test_pictures(http: TestClient, path: str) -> None:
    response = ask(http, CHATS[path], decoding={"method": "cfg"}, **_pictures(path))
    assert error_of(response) == (400, CHATS[path].prompt)
    assert "remove images" in response.json()["error"]["message"]
    response = ask(http, CHATS[path], model="smol@small", **_pictures(path))
    assert error_of(response) == (400, CHATS[path].prompt)
    assert "small model takes text" in response.json()["error"]["message"]


def _pictures(path: str) -> dict[str, Any]:
    return {CHATS[path].prompt: PICTURES[path]}


@of_all
def test_an_alias_of_a_preset(http: TestClient, engine: FakeClient, route: Route) -> None:
    answer = answer_of(http, route, model="smol@strong")
    assert answer["model"] == "smol@strong"
    assert route.account(answer)["method"] == "cfg"
    answer = answer_of(http, route, model="smol@strong", decoding=None)
    assert (answer["model"], route.account(answer)) == ("smol@strong", None)
    if route.summary is not None:
        events = events_of(ask(http, route, model="smol@strong", stream=True).text)
        assert sum(route.summary(*event) is not None for event in events) == 1


@of_all
def test_a_preset_that_does_not_fit(http: TestClient, route: Route) -> None:
    response = ask(http, route, model="smol@gone")
    assert error_of(response) == (400, "decoding.guide.without")
    assert response.json()["error"]["message"].startswith("The preset of smol@gone: The text")


@of_all
def test_a_preset_by_name(http: TestClient, route: Route) -> None:
    assert route.account(answer_of(http, route, decoding="strong"))["method"] == "cfg"
    response = ask(http, route, decoding="gone")
    assert error_of(response) == (400, "decoding.0.guide.without")
    assert response.json()["error"]["message"].startswith("The preset gone: The text")
    assert error_of(ask(http, route, decoding="missing"))[0] == 400


@of_chats
@pytest.mark.parametrize("stream", [False, True])
def test_a_document_that_may_be_missing(
    http: TestClient, engine: FakeClient, route: Route, stream: bool
) -> None:
    if stream and route.summary is None:
        return
    guide = {"documents": True, "if_missing": "plain"}
    response = ask(http, route, decoding=guided(guide=guide), stream=stream)
    if stream:
        assert route.summary is not None
        found = [route.summary(*event) for event in events_of(response.text)]
        (account,) = filter(None, found)
    else:
        account = route.account(response.json())
    assert account["applied_steps"] == 0
    assert "no document" in account["reason"]
    assert engine.orders == [None]


@of_streams
def test_a_trace_at_the_end(http: TestClient, route: Route) -> None:
    asked = guided(trace="final")
    whole = route.account(answer_of(http, route, decoding=asked))
    events = events_of(ask(http, route, decoding=asked, stream=True).text)
    assert route.summary is not None
    (summary,) = (found for event in events if (found := route.summary(*event)))
    assert summary == whole
    assert len(whole["trace"]) == TOKENS
    assert sum("decoding" in str(data) for _, data in events) == 1


@of_all
def test_the_small_model(http: TestClient, engine: FakeClient, route: Route) -> None:
    answer = answer_of(http, route, model="smol@small", decoding={"method": "cfg"})
    assert engine.on_small
    assert answer["model"] == "smol@small"
    answer_of(http, route, model="smol@small")
    assert engine.on_small
    contrast = {"method": "contrastive"}
    assert error_of(ask(http, route, model="smol@small", decoding=contrast)) == (400, "model")


@of_all
@pytest.mark.parametrize(
    ("decoding", "rows"), [(None, 1), (CAD, 2), ({"method": "entropy_temperature"}, 1)]
)
def test_rows(
    http: TestClient, route: Route, decoding: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[int] = []
    monkeypatch.setattr(routes, "weigh", lambda scope, rows: weighed.append(rows))
    answer_of(http, route, decoding=decoding)
    assert weighed == [rows]


@of_all
def test_a_trace_is_bounded(http: TestClient, route: Route) -> None:
    field = "max_output_tokens" if route.path == RESPONSES else "max_tokens"
    response = ask(http, route, decoding=TRACED, **{field: 20_000})
    assert error_of(response) == (400, "decoding.trace")
    assert f"set {field} to at most 16384" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_orders_cannot_be_smuggled(http: TestClient, path: str) -> None:
    response = ask(http, CHATS[path], vllm_xargs={"divserve": "x"})
    assert error_of(response) == (400, "vllm_xargs")


@of_all
@pytest.mark.parametrize("decoding", [None, TRACED], ids=["plain", "guided"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_record(
    app: FastAPI, http: TestClient, route: Route, decoding: Any, stream: bool
) -> None:
    if stream and route.summary is None:
        return
    seen: list[Any] = []
    outermost: Any = app.user_middleware[0]
    assert outermost.cls is instrumentation.Instrumentation
    sinks = outermost.kwargs["sinks"]
    app.state.log_prompts = True
    outermost.kwargs["sinks"] = [lambda record, _: seen.append(record)]
    app.middleware_stack = None
    try:
        assert ask(http, route, decoding=decoding, stream=stream).status_code == 200
    finally:
        outermost.kwargs["sinks"], app.middleware_stack = sinks, None
        app.state.log_prompts = False
    (record,) = seen
    assert (record.method, record.model) == ("cad" if decoding else "plain", "smol")
    assert (record.streams, record.outcome) == (stream, "ok")
    assert (record.completion_tokens, record.steps) == (TOKENS, TOKENS if decoding else 0)
    assert record.prompt_tokens[0] > 10
    assert (record.guide_tokens is not None) == (decoding is not None)
    assert record.finish_reasons == ["length"]
    assert record.answer_id
    assert record.prompt == route.body[route.prompt]


@pytest.mark.parametrize("route", [CHATS[CHAT], CHATS[RESPONSES], TEXT], ids=lambda r: r.path)
def test_what_the_engine_refuses(http: TestClient, route: Route) -> None:
    """It finds this out with the first token; a guided stream has not begun by then."""
    response = ask(http, route, decoding=CAD, stream=True, logit_bias={"999999": 1})
    assert error_of(response) == (400, "logit_bias")


@of_streams
def test_statistics_that_are_missing(
    http: TestClient, engine: FakeClient, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token goes out without its method."""
    monkeypatch.setattr(engine, "report", False)
    response = ask(http, route, decoding=CAD)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "decoding_failed")
    streamed = ask(http, route, decoding=CAD, stream=True)
    assert '"decoding_failed"' in streamed.text
    assert " Lyon" not in streamed.text


def test_count_tokens_ignores_decoding(http: TestClient, engine: FakeClient) -> None:
    body = {"model": "smol@strong", "messages": CHATS[MESSAGES].body["messages"]}
    counts = [
        http.post(f"{MESSAGES}/count_tokens", json=body | more).json()["input_tokens"]
        for more in ({}, {"decoding": CAD})
    ]
    answer = answer_of(http, CHATS[MESSAGES], decoding=CAD)
    assert counts == [answer["usage"]["input_tokens"]] * 2


def test_texts_are_prompts_of_their_own(http: TestClient, engine: FakeClient) -> None:
    answer = answer_of(http, TEXT, prompt=["One", "Two"], decoding={"method": "cfg"})
    assert len(answer["choices"]) == len(engine.orders) == 2
