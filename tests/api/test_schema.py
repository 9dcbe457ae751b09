"""Schemathesis on the live schema: valid and invalid requests are answered in OpenAI's shape.

Three kinds of bodies: valid by the schema, invalid, and good ones with a few fields of the first
kind, which get further into the server than random ones. An ordinary run draws the same bodies
everywhere; the long ones search with a new seed each time. A body that they find goes into `FOUND`.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from schemathesis import GenerationMode

from divserve.http.paths import GUIDED_ROUTES
from tests.support.chat import CAD, MESSAGES, PROMPT

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

EXAMPLES, FEW, FRESH, SOAK_EXAMPLES = 10, 3, 40, 200
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "smol", "messages": MESSAGES, "decoding": CAD},
    "/v1/completions": {"model": "smol", "prompt": PROMPT, "decoding": CAD},
    "/v1/decoding/score": {"model": "smol", "prompt": PROMPT, "answer": "Lyon"},
    "/v1/responses": {"model": "smol", "input": PROMPT, "decoding": CAD},
    "/v1/messages": {"model": "smol", "messages": MESSAGES, "max_tokens": 5, "decoding": CAD},
    "/v1/chat/completions/batch": {"model": "smol", "messages": [MESSAGES], "decoding": CAD},
    "/tokenize": {"model": "smol", "prompt": PROMPT},
    "/invocations": {"model": "smol", "messages": MESSAGES},
}
MENDED = [path for path in GOOD if path != "/invocations"]
"""The paths whose body the schema describes."""
FOUND: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"structured_outputs": False}),
    ("/v1/completions", {"structured_outputs": [1]}),
    ("/v1/chat/completions", {"messages": 5}),
    ("/v1/responses", {"tools": True}),
    ("/invocations", {"structured_outputs": "x"}),
]
"""Bodies that were answered with a 500: a path, and the fields that differ from `GOOD`."""
OURS = (*GUIDED_ROUTES, "/v1/decoding", "/live", "/ready")
"""Prefixes of the paths that get `EXAMPLES`; vLLM's other routes get `FEW`."""
NO_SUCH_FEATURE = {"/v1/systemone", "/kv_event_sources"}
"""Routes of vLLM for other models or back ends: 501, or 500 without an engine."""
PROBES = {"/health", "/live", "/ping", "/ready"}

log = logging.getLogger(__name__)
# Some import in the suite sets the root logger to ERROR, and `make soak` shows these figures.
log.setLevel(logging.INFO)


@pytest.fixture(scope="module", autouse=True)
def no_constants_of_ours() -> Iterator[None]:
    """Hypothesis also draws constants of every module of ours that was imported before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "_get_local_constants", Constants)
        providers.CONSTANTS_CACHE.cache.clear()
        yield
    providers.CONSTANTS_CACHE.cache.clear()


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(scope="module")
def operations(schema: Any) -> dict[str, Any]:
    found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    return {
        label: operation
        for label, operation in found.items()
        if operation.path not in NO_SUCH_FEATURE
    }


def run(
    operation: Any, mode: GenerationMode, examples: int, mend: bool = False, fresh: bool = False
) -> Counter[int]:
    """Sends examples and checks every answer; returns the statuses.

    Args:
        operation: where to.
        mode: whether their bodies are valid.
        examples: how many.
        mend: replace a few fields of a good body only.
        fresh: draw others than the last time.
    """
    statuses: Counter[int] = Counter()
    drawn = random.randrange(2**32) if fresh else None

    def each(case: Any) -> None:
        if mend:
            rng = random.Random(repr(case.body))
            given_fields = list(case.body.items()) if isinstance(case.body, dict) else []
            some = rng.sample(given_fields, min(len(given_fields), rng.randrange(1, 4)))
            case.body = GOOD[operation.path] | dict(some)
        answer = case.call()
        statuses[int(answer.status_code)] += 1
        check(operation.path, case, answer, drawn)

    try:
        draw(operation, mode, examples, drawn, each)
    except Unsatisfiable:
        # A route without input has no invalid input.
        assert mode == GenerationMode.NEGATIVE
        assert operation.body == [] or not statuses
    return statuses


def draw(
    operation: Any,
    mode: GenerationMode,
    examples: int,
    drawn: int | None,
    use: Callable[[Any], None],
) -> None:
    """Calls `use` with examples: always the same ones if the seed `drawn` is None."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=drawn is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        use(case)

    (each if drawn is None else seed(drawn)(each))()


def check(path: str, case: Any, answer: Any, drawn: int | None) -> None:
    """Checks that there is no 5xx and that an error is OpenAI's object."""
    asked = partial(_told, path, case, drawn)
    assert answer.status_code < 500, (asked(), answer.text)
    if answer.status_code >= 400 and path not in PROBES:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}, (asked(), answer.text)
        texts = error["message"], error["type"], error["code"]
        assert all(isinstance(text, str) and text for text in texts), (asked(), answer.text)
        assert error["param"] is None or isinstance(error["param"], str), (asked(), answer.text)


def _told(path: str, case: Any, drawn: int | None) -> str:
    """A line for `FOUND`, and the request as a whole."""
    return f"seed {drawn}: ({path!r}, {case.body!r})\n{case.as_curl_command()}"


MODES = pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)


@MODES
@pytest.mark.parametrize("whose", ["ours", pytest.param("vLLM's", marks=pytest.mark.long)])
def test_every_route(
    operations: dict[str, Any], whose: str, mode: GenerationMode, soak: bool
) -> None:
    ours = {label: each for label, each in operations.items() if each.path.startswith(OURS)}
    others = {label: each for label, each in operations.items() if label not in ours}
    chosen = ours if whose == "ours" else others
    assert len(chosen) > (5 if whose == "ours" else 15)
    for label, operation in chosen.items():
        examples = EXAMPLES if whose == "ours" else FEW
        found = run(operation, mode, SOAK_EXAMPLES if soak else examples, fresh=soak)
        log.info("%s, %s: %s", label, mode.value, dict(found))


@MODES
@pytest.mark.long
def test_bodies_that_no_run_has_drawn(operations: dict[str, Any], mode: GenerationMode) -> None:
    for label, operation in operations.items():
        found = run(operation, mode, FRESH if operation.path.startswith(OURS) else FEW, fresh=True)
        log.info("%s, %s: %s", label, mode.value, dict(found))


@pytest.mark.parametrize(("path", "fields"), FOUND)
def test_bodies_that_were_found(app: FastAPI, path: str, fields: dict[str, Any]) -> None:
    http = TestClient(app, raise_server_exceptions=False)
    answer = http.post(path, json=GOOD[path] | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(fields))


def test_the_same_bodies_are_drawn_everywhere(operations: dict[str, Any], tmp_path: Path) -> None:
    """Whatever else a process has imported before."""
    operation = operations["POST /v1/completions"]

    def bodies() -> list[str]:
        found: list[str] = []
        mode = GenerationMode.NEGATIVE
        draw(operation, mode, EXAMPLES, None, lambda case: found.append(repr(case.body)))
        return found

    before = bodies()
    file = tmp_path.with_name("constants") / "constants_of_a_module.py"
    file.parent.mkdir()
    file.write_text("\n".join(f"NAME_{i} = 'constant {i}', {i * 77777}" for i in range(300)))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    try:
        assert bodies() == before
    finally:
        del sys.modules[file.stem]


@pytest.mark.parametrize("path", MENDED)
@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.long)])
def test_good_bodies_with_odd_fields(
    operations: dict[str, Any], path: str, fresh: bool, soak: bool
) -> None:
    operation = operations[f"POST {path}"]
    examples = SOAK_EXAMPLES if soak else 3 * EXAMPLES
    found = run(operation, GenerationMode.POSITIVE, examples, mend=True, fresh=fresh)
    log.info("%s, mended: %s", path, dict(found))
    assert found[200] > 0, found
    assert found[400] > 0, found
