"""Both sides of every limit on the fields of a body, without a server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from divserve.api.guided import Guided
from divserve.api.limits import check_request
from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.edges.flags import EdgeSettings
from divserve.errors import InvalidRequest
from divserve.http.fields import check_fields
from tests.support.chat import MESSAGES, PROMPT, guided

SETTINGS = EdgeSettings(
    max_n=3, max_stop_strings=2, max_stop_length=5, max_batch_prompts=4, max_trace_tokens=100
)
ADVICE = "Send less, or start the server with a larger "


def refusal(fields: dict[str, Any]) -> tuple[str | None, str]:
    """Path and message of the error."""
    with pytest.raises(InvalidRequest) as refused:
        check_fields(fields.get, SETTINGS)
    return refused.value.param, refused.value.message


@pytest.mark.parametrize(
    ("field", "most", "beyond", "told"),
    [
        ("n", 3, 4, "is 4; the most is 3. @--max-n."),
        ("best_of", 3, 4, "is 4; the most is 3."),
        ("n", 1, 2**63 - 1, "is 9223372036854775807; the most is 3."),
        ("n", 2, 2**63, "is a huge number; the most is 3."),
        ("n", 1, 10**4000, "is a huge number; the most is 3."),
        ("n", "3", " 4", "is 4; the most is 3."),
        ("best_of", 3.0, 4.0, "is 4; the most is 3."),
        ("n", True, False, "is 0; it must be at least 1."),
        ("n", 1, 0, "is 0; it must be at least 1."),
        ("best_of", 1, -1, "is -1; it must be at least 1."),
        ("n", 1, -(10**4000), "is a huge number; it must be at least 1."),
        ("items", ["a"] * 4, ["a"] * 5, "has 5 prompts; "),
        ("stop", ["a", "b"], ["a"] * 3, "has 3 strings; the most is 2. @--max-stop-strings."),
        ("stop_sequences", [], ["a"] * 3, "has 3 strings; the most is 2."),
        ("stop", "abcde", "abcdef", "has a string of 6 characters; the most is 5. @--max-stop-"),
        ("stop_sequences", [5, "abcde"], [5, "abcdef"], "has a string of 6 characters; "),
        ("prompt", ["a"] * 4, ["a"] * 5, "has 5 prompts; the most is 4. @--max-batch-prompts."),
        ("prompt", [[5]] * 4, [[5]] * 5, "has 5 prompts; "),
        ("prompt", [5] * 9, [[5], [6], [7], [8], [9]], "has 5 prompts; "),
        ("prompt_embeds", ["a"] * 4, ["a"] * 5, "has 5 prompts; "),
        ("prompt_embeds", [b"a"] * 4, [b"a"] * 5, "has 5 prompts; "),
        ("messages", [{"role": "user"}] * 9, [[]] * 5, "has 5 prompts; "),
    ],
)  # fmt: skip
def test_a_field_and_its_limit(field: str, most: Any, beyond: Any, told: str) -> None:
    check_fields({field: most}.get, SETTINGS)
    param, message = refusal({field: beyond})
    assert param == field
    assert message.startswith(f"{field} {told.replace('@', ADVICE)}")


def test_a_field_that_is_fine_hides_none_that_is_not() -> None:
    fine = {"n": "many", "best_of": 1, "stop": None, "stop_sequences": ["a"], "prompt": "a"}
    check_fields(fine.get, SETTINGS)
    assert refusal({**fine, "best_of": 4})[0] == "best_of"
    assert refusal({**fine, "stop_sequences": ["a"] * 3})[0] == "stop_sequences"
    assert refusal({**fine, "messages": [[]] * 5})[0] == "messages"


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, "decoding": guided(), **fields})


TRACED = guided(trace=True)
PLAIN = guided("entropy_temperature")


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("request_", "context", "param", "longest"),
    [
        (chat(decoding=TRACED, max_tokens=101), 50, "decoding.trace", 101),
        (chat(decoding=TRACED, max_completion_tokens=102, max_tokens=5), 50, "decoding.trace", 102),
        (chat(decoding=TRACED), 103, "decoding.trace", 103),
        (chat(decoding=[PLAIN, TRACED], max_tokens=104), 50, "decoding.1.trace", 104),
        (
            CompletionsRequest(prompt=PROMPT, max_tokens=105, decoding=TRACED),
            50,
            "decoding.trace",
            105,
        ),
    ],
)
def test_a_trace_that_is_too_long(request_: Guided, context: int, param: str, longest: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(request_, SETTINGS, context)
    assert refused.value.param == param
    assert refused.value.message == (
        f"A trace of up to {longest} tokens is too long: set max_tokens to at most 100, leave the "
        "trace out, or start the server with a larger --max-trace-tokens."
    )


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("request_", "context"),
    [
        (chat(decoding=TRACED, max_tokens=100), 5000),
        (chat(decoding=TRACED, max_completion_tokens=100, max_tokens=5000), 5000),
        (chat(decoding=TRACED), 100),
        (chat(max_tokens=5000), 5000),
        (chat(decoding=None), 5000),
    ],
)
def test_what_is_no_long_trace(request_: Guided, context: int) -> None:
    check_request(request_, SETTINGS, context)


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
def test_a_trace_is_counted_over_all_choices() -> None:
    prompts = [PROMPT, PROMPT]
    fits: Any = {"prompt": prompts, "n": 2, "decoding": TRACED}
    check_request(CompletionsRequest(**fits, max_tokens=25), SETTINGS, 50)
    with pytest.raises(InvalidRequest) as refused:
        check_request(CompletionsRequest(**fits, max_tokens=26), SETTINGS, 50)
    assert refused.value.param == "decoding.trace"
    assert refused.value.message.startswith(
        "A trace of up to 104 tokens, over 4 choices, is too long: set max_tokens to at most 25, "
    )


def top(number: int, method: str = "cad", **fields: Any) -> dict[str, Any]:
    return guided(method, trace={"top": number}, **fields)


@pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("decoding", "streams", "param"),
    [
        (top(4), 3, "decoding.trace.top"),
        (top(4, "entropy_temperature"), 2, "decoding.trace.top"),
        ({"method": "dexperts", "trace": {"top": 4}}, 4, "decoding.trace.top"),
        ([guided(), top(4, "kl_temperature", guide={"prompt": "x"})], 4, "decoding.1.trace.top"),
        ([top(4), top(3, "kl_temperature")], 3, "decoding.0.trace.top"),
    ],
)
def test_candidates_of_a_trace(decoding: Any, streams: int, param: str) -> None:
    """Tokens of all choices × likeliest tokens × streams."""
    limits = EdgeSettings(max_trace_candidates=6 * 4 * streams)
    fields: Any = {"prompt": PROMPT, "n": 2, "decoding": decoding}
    check_request(CompletionsRequest(**fields, max_tokens=3), limits, 50)
    with pytest.raises(InvalidRequest) as refused:
        check_request(CompletionsRequest(**fields, max_tokens=4), limits, 50)
    assert refused.value.param == param
    assert refused.value.message == (
        f"A trace with the 4 likeliest tokens of {streams} streams, for up to 8 tokens of all "
        f"choices, has up to {32 * streams} candidates; the most is {24 * streams}. Lower 'top', "
        "limit all choices together to 6 tokens, or start the server with a larger "
        "--max-trace-candidates."
    )


@pytest.mark.parametrize(
    ("fits", "beyond", "param"),
    [
        ({"n": 6}, {"n": 7}, "n"),
        ({"n": 3, "decoding": guided()}, {"n": 4, "decoding": guided()}, "n"),
        (
            {"prompt": [PROMPT] * 3, "n": 1, "decoding": guided()},
            {"prompt": [PROMPT] * 4, "decoding": guided()},
            "prompt",
        ),
    ],
)
def test_rows_of_a_request(fits: dict[str, Any], beyond: dict[str, Any], param: str) -> None:
    limits = EdgeSettings(max_rows_per_request=6)
    check_request(CompletionsRequest(**{"prompt": PROMPT, **fits}), limits, 50)
    with pytest.raises(InvalidRequest) as refused:
        check_request(CompletionsRequest(**{"prompt": PROMPT, **beyond}), limits, 50)
    assert refused.value.param == param
    assert re.match(r"The request takes [78] rows, .*; the most is 6\. ", refused.value.message)
    assert "--max-rows-per-request" in refused.value.message


def test_rows_of_one_choice_have_no_field() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(chat(), EdgeSettings(max_rows_per_request=1), 50)
    assert refused.value.param is None
