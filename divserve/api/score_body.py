"""The body of ``POST /v1/decoding/score``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from divserve.decoding import METHODS, Decoding, Guide, Method, PresetRef, Stack
from divserve.errors import InvalidRequest
from divserve.http.fields import FieldLimits, prompts_in, too_much
from divserve.scores import SCORES

__all__ = ["TEXT_FIELDS", "ScoreRequest"]

TEXT_FIELDS = ("input", "prompt", "messages")
MOST_TOP = 20
"""As many of the likeliest tokens as vLLM returns by default."""
MOST_IDS = 1024
"""Ids of one token whose log-probs are returned."""

Texts = str | list[str] | list[int] | list[list[int]]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class ScoreRequest(BaseModel):
    """A text, or answers behind a prompt or a chat, whose tokens are scored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = Field(default=None, description="The served model.")
    input: Texts | None = Field(
        default=None,
        description="Whole texts, or their token ids. All tokens but the first are scored.",
    )
    prompt: str | list[int] | None = Field(
        default=None, description="What 'answer' follows: text or token ids."
    )
    messages: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, description="What 'answer' follows: a chat."
    )
    answer: Texts | None = Field(
        default=None,
        description="Answers behind 'prompt' or 'messages', or their token ids: only their tokens "
        "are scored. Each is tokenized by itself, as the model would have written it.",
    )
    documents: list[dict[str, str]] | None = Field(
        default=None, description="Documents of the chat, for its template."
    )
    tools: list[dict[str, Any]] | None = Field(default=None, description="Tools of the chat.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Arguments of the chat template."
    )
    add_special_tokens: bool = Field(
        default=True, description="Whether 'input' or 'prompt' begins with the special tokens."
    )
    guide: Guide | None = Field(
        default=None,
        description="What the second stream sees before the same answer (pmi, kl, jsd).",
    )
    method: Decoding | None = Field(
        default=None,
        description="A method without memory of earlier steps, as in 'decoding': log-probs, "
        "entropies and ranks are then those of the distribution that it samples from.",
    )
    scores: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=len(SCORES),
        description="Names of /v1/decoding/scores.",
    )
    k: float = Field(default=0.2, gt=0, le=1, description="Share of tokens (min_k, min_k_pp).")
    cap: float = Field(default=0.01, gt=0, description="The largest product of dc_pdd.")
    tokens: bool = Field(default=False, description="Return the figures of every token.")
    top_logprobs: int = Field(
        default=0, ge=0, le=MOST_TOP, description="Likeliest tokens in each entry of the trace."
    )
    logprob_token_ids: list[Annotated[list[TokenId], Field(max_length=MOST_IDS)]] | None = Field(
        default=None,
        description="For each scored token a list of ids whose log-probs its entry of the trace "
        "has. For one text at a time.",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_and_share(cls, body: Any) -> Any:
        """``method`` may be a name; methods without a guide of their own take that of the body."""
        if not isinstance(body, Mapping) or (method := body.get("method")) is None:
            return body
        if isinstance(method, str):
            method = {"method": method}
        guide = body.get("guide")
        given = method if isinstance(method, list) else [method]
        shared = [_with_guide(one, guide) for one in given]
        return {**body, "method": shared if isinstance(method, list) else shared[0]}

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> ScoreRequest:
        self._check_texts()
        self._check_method()
        self._check_guide()
        return self

    def _check_texts(self) -> None:
        given = [name for name in TEXT_FIELDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "Give exactly one of 'input', 'prompt' and 'messages' "
                f"(given: {', '.join(given) or 'none'}).",
                param=given[1] if given else "input",
            )
        if given == ["input"]:
            if self.answer is not None:
                raise InvalidRequest(
                    "'answer' follows 'prompt' or 'messages', not 'input'.", param="answer"
                )
        elif self.answer is None:
            raise InvalidRequest(
                f"'{given[0]}' needs an 'answer' to score.",
                param="answer",
                code="missing_required_parameter",
            )
        if self.prompt in ("", []):
            raise InvalidRequest(
                "'prompt' is empty: at least one token must stand before the answer. 'input' "
                "scores whole texts.",
                param="prompt",
            )
        if not self.given:
            raise InvalidRequest(f"'{self.scored_field}' is empty.", param=self.scored_field)
        if self.logprob_token_ids is not None and len(self.texts) > 1:
            raise InvalidRequest(
                "logprob_token_ids has one list for each token of a text: send one text.",
                param="logprob_token_ids",
            )

    def _check_method(self) -> None:
        if self.method is None:
            return
        if isinstance(self.method, PresetRef):
            raise InvalidRequest(
                "A preset scores nothing: send its methods (/v1/decoding/presets).", param="method"
            )
        stack = Stack(self.method)
        if stack.trace:
            raise InvalidRequest(
                "A method's trace is of tokens that it decodes: 'tokens' returns the figures of "
                "every scored token.",
                param="method",
            )
        if not stack.scores_texts:
            raise InvalidRequest(
                f"{stack.name} depends on earlier steps or on a text that is read first: a given "
                "text can only be scored under methods that need neither.",
                param="method",
            )

    def _check_guide(self) -> None:
        guided = [method for method in self.methods if method.guided]
        if self.guide is not None and self.method is not None and not guided:
            raise InvalidRequest(
                "The method has no second stream: leave 'guide' or 'method' out.", param="guide"
            )
        if self.input is not None and (self.guide is not None or guided):
            raise InvalidRequest(
                "A guide takes the place of what stands before the scored text: send 'prompt' or "
                "'messages' with an 'answer'.",
                param="guide" if self.guide is not None else "method",
            )

    @property
    def methods(self) -> list[Method]:
        """The methods; none if the plain model scores."""
        if self.method is None or isinstance(self.method, PresetRef):
            return []
        return [*self.method] if isinstance(self.method, list) else [self.method]

    @property
    def is_compared(self) -> bool:
        """Whether there is a guide."""
        return self.guide is not None or any(method.guided for method in self.methods)

    @property
    def scored_field(self) -> str:
        """The field with the scored texts."""
        return "answer" if self.input is None else "input"

    @property
    def given(self) -> Any:
        """The value of `scored_field`."""
        return getattr(self, self.scored_field)

    @property
    def texts(self) -> list[str] | list[list[int]]:
        """The scored texts, each a string or token ids."""
        one = isinstance(self.given, str) or isinstance(self.given[0], int)
        found: list[Any] = [self.given] if one else self.given
        return found

    @property
    def traced(self) -> bool:
        """Whether the answer has an entry for every token."""
        return self.tokens or self.top_logprobs > 0 or self.logprob_token_ids is not None

    @property
    def rows(self) -> int:
        """Rows of the engine's batch that it takes."""
        lower = "lowercase" in (self.scores or ())
        return len(self.texts) * (1 + self.is_compared + lower)

    def check_limits(self, limits: FieldLimits) -> None:
        """Raises `InvalidRequest` for more texts or rows than a request may have."""
        if (count := prompts_in(self.given)) > limits.max_batch_prompts:
            most, field = limits.max_batch_prompts, self.scored_field
            raise too_much(field, f"has {count} texts", most, "--max-batch-prompts")
        if self.rows > (most := limits.max_rows_per_request):
            field, flag = self.scored_field, "--max-rows-per-request"
            raise too_much(field, f"takes {self.rows} rows", most, flag)


def _with_guide(method: Any, guide: Any) -> Any:
    """A method's body with the guide of the request, if it takes one and has none."""
    name = method.get("method") if isinstance(method, Mapping) else None
    known = METHODS.get(name) if isinstance(name, str) else None
    if guide is None or known is None or not known.guided or method.get("guide") is not None:
        return method
    return {**method, "guide": guide}
