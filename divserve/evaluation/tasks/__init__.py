"""The tasks that ship: made from templates, the same items every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from divserve.evaluation.items import Task
from divserve.evaluation.tasks import (
    arithmetic,
    code,
    conflict,
    continuation,
    distractors,
    enumeration,
    extractive,
)

__all__ = ["TASKS"]

TASKS: Mapping[str, Callable[[], Task]] = {
    "conflict": conflict.task,
    "extractive": extractive.task,
    "distractors": distractors.task,
    "arithmetic": arithmetic.task,
    "code": code.task,
    "enumeration": enumeration.task,
    "continuation": continuation.task,
}
