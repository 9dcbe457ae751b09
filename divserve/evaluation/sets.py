"""What an item of each data set is: how a line of its file is asked and judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from divserve.evaluation.items import Item

__all__ = ["boolq", "disfl_qa", "gsm8k", "human_eval", "narrative_qa", "nq_open", "xsum"]

MOST_WORDS = 4
"""Of an answer that can be looked for in a text; lines with longer ones only are left out."""
LONGEST = 6000
"""Characters of a document, some 1,500 tokens; lines with longer ones are left out."""
FROM_TEXT = "{text}\n\nAnswer from the text, in a few words. {question}"
YES_OR_NO = "{text}\n\nAnswer from the text with yes or no. {question}?"
LAST_NUMBER = re.compile(r"#### (-?\d[\d,]*(?:\.\d+)?)")

Line = Mapping[str, Any]


def nq_open(number: str, line: Line) -> Item | None:
    """A question without a document; its answers are names and dates."""
    question = f"Answer in a few words. {line['question']}?"
    return _short(number, question, None, line["answer"])


def disfl_qa(number: str, line: Line) -> Item | None:
    """A question that corrects itself, about a passage."""
    return _about(number, line["passage"], line["question"], [line["answer"]])


def narrative_qa(number: str, line: Line) -> Item | None:
    """A question about the plot of a story."""
    return _about(number, line["passage"], line["question"], line["answer"])


def boolq(number: str, line: Line) -> Item | None:
    """A yes-or-no question about a passage."""
    right, wrong = ("yes", "no") if str(line["answer"]) == "True" else ("no", "yes")
    text = line["passage"].strip()
    asked = YES_OR_NO.format(text=text, question=line["question"].rstrip("?"))
    return _item(
        number, asked, document=text, group=right, answers=[right], others=[wrong], max_tokens=8
    )


def xsum(number: str, line: Line) -> Item | None:
    """A summary in a sentence; nothing is judged."""
    text = line["document"].strip()
    if not text or len(text) > LONGEST:
        return None
    asked = f"{text}\n\nSummarise this in one sentence."
    return _item(number, asked, document=text, judge="none", max_tokens=64)


def gsm8k(number: str, line: Line) -> Item | None:
    """A word problem of several steps."""
    problem = line["question"]
    found = LAST_NUMBER.search(line["answer"])
    if found is None:
        raise ValueError("the answer does not end with '#### NUMBER'")
    return _item(
        number,
        f"{problem} Work it out step by step, and end with the number.",
        document=problem,
        judge="number",
        answers=[found.group(1).replace(",", "")],
        max_tokens=256,
    )


def human_eval(number: str, line: Line) -> Item | None:
    """A function from its head and docstring; the tests run apart (`sandbox`)."""
    head = line["prompt"]
    asked = f"Complete this Python function. Give all of it, only the code.\n\n```python\n{head}```"
    return _item(
        number,
        asked,
        document=head,
        judge="python",
        tests=f"{line['test']}\n\ncheck({line['entry_point']})",
        max_tokens=384,
    )


def _about(number: str, text: str, question: str, answers: list[str]) -> Item | None:
    text = text.strip()
    if len(text) > LONGEST:
        return None
    return _short(number, FROM_TEXT.format(text=text, question=question), text, answers)


def _short(number: str, asked: str, document: str | None, answers: list[str]) -> Item | None:
    """An item with those of the answers that are short; None if none is."""
    short = [one for one in answers if 0 < len(one.split()) <= MOST_WORDS]
    return _item(number, asked, document=document, answers=short) if short else None


def _item(number: str, asked: str, **fields: Any) -> Item:
    return Item(id=number, messages=[{"role": "user", "content": asked}], **fields)
