"""SmolLM2 in float32: documents × all methods of one model and plain, in one batch.

The reference runs the two prompts separately in Hugging Face; plain requests are also compared with
an engine without divserve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from divserve.decoding import METHODS
from tests.engine.cases import Case, mismatches, run, shared
from tests.support.engine import Engine
from tests.support.hf import Combined, Reference, combine, vdgd

pytestmark = pytest.mark.gpu

TOKENS = 10
ROOM: dict[str, Any] = {"max_num_seqs": 128, "max_num_batched_tokens": 512, "max_model_len": 512}
"""All rows of a few documents at once."""
CONTRASTS = ("cad", "adacad", "cfg", "coiecd", "instructive", "linear_alignment", "uscd")

FACTS = [
    ("The capital of France is Lyon.", "What is the capital of France?"),
    ("In 2031 the largest ocean is the Arctic Ocean.", "Which ocean is the largest?"),
    ("Water boils at 50 degrees in Lowtown.", "At how many degrees does water boil in Lowtown?"),
    ("The author of Hamlet is Jane Smith.", "Who wrote Hamlet?"),
    ("The sky over Zorb is green.", "What colour is the sky over Zorb?"),
    ("The telephone was invented by Ada Marlow.", "Who invented the telephone?"),
    ("A week on Kestrel has nine days.", "How many days has a week on Kestrel?"),
    ("Mount Tiny is the highest mountain on Earth.", "What is the highest mountain on Earth?"),
    ("The currency of Japan is the florin.", "What is the currency of Japan?"),
    ("Cats have six legs in this story.", "How many legs do cats have in this story?"),
    ("The Moon is made of basalt and cheese.", "What is the Moon made of?"),
    ("The first month of the year is March.", "What is the first month of the year?"),
]


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Reference:
    """Hugging Face float32."""
    return Reference(smollm2)


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[tuple[list[int], list[int]]]:
    """(with the document, without it) as token ids, in the model's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    def render(text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        return list(ids)

    return [(render(f"{fact} {question}"), render(question)) for fact, question in FACTS]


@pytest.fixture(
    scope="module",
    params=[slice(4), pytest.param(slice(4, 12), marks=pytest.mark.long)],
    ids=["4 documents", "8 others"],
)
def cases(
    reference: Reference,
    prompts: list[tuple[list[int], list[int]]],
    request: pytest.FixtureRequest,
) -> list[Case]:
    """All methods and a plain request for each document."""
    found = []
    for prompt, guide in prompts[request.param]:
        vector = reference.grounding(guide)
        ways: list[Combined] = [lambda z: z[0], lambda z, v=vector: vdgd(z[0], v)]  # type: ignore[misc]
        ways += [partial(_contrast, method) for method in CONTRASTS]
        plain, grounded, *contrasted = reference.together(prompt, [guide], ways, TOKENS)
        found.append(Case(prompt, None, "", TOKENS, plain))
        # Temperature never changes the order of the tokens.
        found.append(Case(prompt, guide, "kl_temperature", TOKENS, plain))
        found.append(Case(prompt, None, "entropy_temperature", TOKENS, plain))
        found.append(Case(prompt, guide, "vdgd", TOKENS, grounded))
        for method, expected in zip(CONTRASTS, contrasted, strict=True):
            found.append(Case(prompt, guide, method, TOKENS, expected))
    return found


def _contrast(method: str, logits: list[Tensor]) -> Tensor:
    return combine(method, *logits)


@pytest.fixture(scope="module")
def stock_answers(smollm2: Path, cases: list[Case]) -> list[list[int]]:
    """The plain requests on vLLM's own scheduler and runner.

    Runs before the other engine: closing one tears down the torch process groups of both.
    """
    stock = Engine(smollm2, lockstep=False, **ROOM)
    answers = run(stock, [c for c in cases if not c.method])
    stock.close()
    return answers


@pytest.fixture(scope="module")
def engine(smollm2: Path, stock_answers: Any) -> Iterator[Engine]:
    """The engine under test."""
    engine = Engine(smollm2, **ROOM)
    yield engine
    engine.close()


def test_one_batch_equals_the_reference(engine: Engine, cases: list[Case]) -> None:
    alone = [name for name, method in METHODS.items() if not method.amateurs + method.engines]
    documents = len({tuple(c.prompt) for c in cases})
    assert Counter(c.method for c in cases) == dict.fromkeys((*alone, ""), documents)
    assert mismatches(cases, run(engine, cases)) == []
    assert set(engine.leftovers().values()) == {0}


def test_plain_requests_equal_stock_vllm(
    engine: Engine, cases: list[Case], stock_answers: list[list[int]]
) -> None:
    plain = [(t, c) for t, c in zip(run(engine, cases), cases, strict=True) if not c.method]
    for (tokens, case), stock in zip(plain, stock_answers, strict=True):
        sure = shared(case.expected)
        assert (tokens[:sure], len(tokens)) == (stock[:sure], len(stock))


def test_methods_change_answers(cases: list[Case]) -> None:
    """Guards the tests above: the guide changes what is compared."""
    by_method: dict[str, int] = Counter()
    plain = {tuple(c.prompt): c.expected.tokens for c in cases if not c.method}
    for case in cases:
        by_method[case.method] += case.expected.tokens != plain[tuple(case.prompt)]
    assert min(by_method[m] for m in (*CONTRASTS, "vdgd")) > 0
