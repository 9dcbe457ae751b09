"""Schemathesis on the live schema: valid and invalid requests are answered in OpenAI's shape.

Three kinds of bodies: valid by the schema, invalid, and good ones with a few fields of the first
kind, which get further into the server than random ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from divserve.server import build_app
from tests.support.chat import CAD, MESSAGES, PROMPT
from tests.support.fake_client import FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

EXAMPLES, FEW, SOAK_EXAMPLES = 10, 3, 200
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "smol", "messages": MESSAGES, "decoding": CAD},
    "/v1/completions": {"model": "smol", "prompt": PROMPT, "decoding": CAD},
    "/v1/responses": {"model": "smol", "input": PROMPT},
    "/v1/messages": {"model": "smol", "messages": MESSAGES, "max_tokens": 5},
    "/tokenize": {"model": "smol", "prompt": PROMPT},
}
OURS = ("/v1/chat/completions", "/v1/completions", "/v1/decoding", "/live", "/ready")
"""Prefixes of the paths that get `EXAMPLES`; vLLM's other routes get `FEW`."""
NO_SUCH_FEATURE = {"/v1/systemone", "/kv_event_sources"}
"""Routes of vLLM for other models or back ends: 501, or 500 without an engine."""
PROBES = {"/health", "/live", "/ping", "/ready"}

log = logging.getLogger(__name__)
# Some import in the suite sets the root logger to ERROR, and `make soak` shows these figures.
log.setLevel(logging.INFO)


@pytest.fixture(scope="module")
def schema(fake_engine: FakeClient) -> Any:
    app = asyncio.run(build_app(fake_engine, arguments()))  # type: ignore[arg-type]
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.fixture(scope="module")
def operations(schema: Any) -> dict[str, Any]:
    found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    return {
        label: operation
        for label, operation in found.items()
        if operation.path not in NO_SUCH_FEATURE
    }


def run(operation: Any, mode: GenerationMode, examples: int, mend: bool = False) -> Counter[int]:
    """Sends examples and checks every answer; returns the statuses."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        if mend:
            rng = random.Random(repr(case.body))
            given_fields = list(case.body.items()) if isinstance(case.body, dict) else []
            some = rng.sample(given_fields, min(len(given_fields), rng.randrange(1, 4)))
            case.body = GOOD[operation.path] | dict(some)
        answer = case.call()
        statuses[int(answer.status_code)] += 1
        check(operation.path, case, answer)

    try:
        each()
    except Unsatisfiable:
        # A route without input has no invalid input.
        assert mode == GenerationMode.NEGATIVE
        assert operation.body == [] or not statuses
    return statuses


def check(path: str, case: Any, answer: Any) -> None:
    """Checks that there is no 5xx and that an error is OpenAI's object."""
    asked = partial(case.as_curl_command)
    assert answer.status_code < 500, (asked(), answer.text)
    if answer.status_code >= 400 and path not in PROBES:
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}, (asked(), answer.text)
        texts = error["message"], error["type"], error["code"]
        assert all(isinstance(text, str) and text for text in texts), (asked(), answer.text)
        assert error["param"] is None or isinstance(error["param"], str), (asked(), answer.text)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
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
        found = run(operation, mode, SOAK_EXAMPLES if soak else examples)
        log.info("%s, %s: %s", label, mode.value, dict(found))


@pytest.mark.parametrize("path", GOOD)
def test_good_bodies_with_odd_fields(operations: dict[str, Any], path: str, soak: bool) -> None:
    operation = operations[f"POST {path}"]
    examples = SOAK_EXAMPLES if soak else 3 * EXAMPLES
    found = run(operation, GenerationMode.POSITIVE, examples, mend=True)
    log.info("%s, mended: %s", path, dict(found))
    assert found[200] > 0, found
    assert found[400] > 0, found
