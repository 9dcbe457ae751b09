"""The typed bodies: what they pack for the engine and which combinations they reject."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.decoding import Program, Spec
from divserve.decoding.kl_temperature import KlTemperature
from divserve.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "Read the document."}]
CAD = {"method": "cad", "guide": {"without": "document"}}


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, "decoding": CAD} | fields)


def completion(**fields: Any) -> CompletionsRequest:
    return CompletionsRequest.model_validate({"prompt": "A document", "decoding": CAD} | fields)


def packed(request: Any, **defaults: Any) -> Any:
    return request.to_sampling_params(16, defaults)


@pytest.mark.parametrize("fields", [{}, {"decoding": None}])
def test_a_plain_request_is_packed_as_in_vllm(fields: dict[str, Any]) -> None:
    for request in (
        ChatRequest.model_validate({"messages": MESSAGES} | fields),
        CompletionsRequest.model_validate({"prompt": "a"} | fields),
    ):
        assert request.decoding is None
        assert packed(request).extra_args is None


def test_the_order_of_a_chat() -> None:
    request = chat(decoding={**CAD, "alpha": 0.75}, vllm_xargs={"mine": 1})
    request.give_guides([[[4, 5]]])
    extra = packed(request).extra_args
    assert extra["divserve"] == Spec(Program(alpha=0.75), [[4, 5]])
    assert extra["mine"] == 1
    assert request.side_tokens(0) == 2


def test_every_prompt_gets_its_guide() -> None:
    request = completion(prompt=["A document", "document B"])
    request.give_guides([[[1]], [[2, 3]]])
    guides = [packed(request).extra_args["divserve"].guides for _ in range(2)]
    assert guides == [[[1]], [[2, 3]]]
    assert [request.side_tokens(i) for i in range(2)] == [1, 2]


def test_the_temperature_is_the_final_one() -> None:
    """The server's default is used if the body has none: the program's floor depends on it."""
    decoding = {"method": "kl_temperature", "guide": {"without": "document"}}
    request = chat(decoding=decoding)
    request.give_guides([[[1]]])
    spec = packed(request, temperature=0.5).extra_args["divserve"]
    assert isinstance(request.decoding, KlTemperature)
    assert spec.program == request.decoding.program(0.5)
    assert request.sampled_at == 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_beam_search", True),
        ("kv_transfer_params", {"do_remote_prefill": True}),
        ("ec_transfer_params", {"a": 1}),
        ("truncate_prompt_tokens", 5),
        ("truncate_prompt_tokens", -1),
    ],
)
def test_fields_that_exclude_decoding(field: str, value: Any) -> None:
    for make in (chat, completion):
        with pytest.raises(InvalidRequest, match=f"cannot be combined with {field}") as refusal:
            make(**{field: value})
        assert refusal.value.param == "decoding"
        make(decoding=None, **{field: value})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"echo": True, "logprobs": True, "top_logprobs": 2}, "echo"),
    ],
)
def test_a_prompt_is_not_scored_with_a_method(fields: dict[str, Any], param: str) -> None:
    """The numbers would be the plain model's, beside guided ones for the answer."""
    make = chat if "top_logprobs" in fields else completion
    with pytest.raises(InvalidRequest, match="/v1/decoding/score scores") as refusal:
        make(**fields)
    assert refusal.value.param == param
    assert packed(make(decoding=None, **fields)).prompt_logprobs is not None


def test_an_echo_alone_scores_nothing() -> None:
    """vLLM would score the prompt of a chat with `echo`, although nobody asked."""
    assert packed(chat(decoding=None, echo=True)).prompt_logprobs == 0
    for request in (chat(echo=True), completion(echo=True)):
        request.give_guides([[[4, 5]]])
        assert packed(request).prompt_logprobs is None


@pytest.mark.parametrize("decoding", [None, CAD])
def test_a_prompt_is_not_truncated_to_nothing(decoding: Any) -> None:
    """vLLM reports an empty "decoder prompt" and names no field."""
    for make in (chat, completion):
        with pytest.raises(InvalidRequest, match="truncate_prompt_tokens is 0") as refusal:
            make(decoding=decoding, truncate_prompt_tokens=0)
        assert refusal.value.param == "truncate_prompt_tokens"


def test_prompt_embeddings_exclude_decoding() -> None:
    with pytest.raises(InvalidRequest, match="prompt_embeds"):
        completion(prompt_embeds=b"abc")


def test_a_plain_request_can_not_smuggle_an_order() -> None:
    for make in (chat, completion):
        with pytest.raises(InvalidRequest, match="reserved") as refusal:
            make(decoding=None, vllm_xargs={"divserve": "x"})
        assert refusal.value.param == "vllm_xargs"


def test_each_route_names_the_guide_it_takes() -> None:
    with pytest.raises(InvalidRequest, match="Chat takes 'messages'") as of_chat:
        chat(decoding={"method": "cad", "guide": {"prompt": "x"}})
    with pytest.raises(InvalidRequest, match="Completions take 'prompt'") as of_completion:
        completion(decoding={"method": "cad", "guide": {"messages": MESSAGES}})
    assert of_chat.value.param == "decoding.guide.prompt"
    assert of_completion.value.param == "decoding.guide.messages"


IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]


def test_images_are_refused() -> None:
    message = {"role": "user", "content": IMAGE}
    with pytest.raises(InvalidRequest, match="text messages only") as primary:
        chat(messages=[message])
    with pytest.raises(InvalidRequest, match="text messages only") as guide:
        chat(decoding={"method": "cad", "guide": {"messages": [message]}})
    assert primary.value.param == "messages"
    assert guide.value.param == "decoding.guide.messages"
    chat(messages=[message], decoding=None)


def test_a_trace_does_not_show_hidden_reasoning() -> None:
    chat(include_reasoning=False)
    with pytest.raises(InvalidRequest, match="hides") as refusal:
        chat(include_reasoning=False, decoding={**CAD, "trace": True})
    assert refusal.value.param == "decoding.trace"


def test_nothing_to_decode() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens is 0"):
        completion(max_tokens=0, echo=True)


def test_contents_can_be_read_twice() -> None:
    """Validation turns some lists of parts into iterators; the guide reads them too."""
    parts = [{"type": "text", "text": "Read the document."}]
    messages = [{"role": "assistant", "content": parts}, {"role": "user", "content": parts}]
    request = chat(messages=messages)
    for message in request.messages:
        assert [dict(part) for part in message["content"]] == parts
        assert [dict(part) for part in message["content"]] == parts
