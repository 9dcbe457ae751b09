"""Members of vLLM's classes that our source overrides, uses or writes: these must be seams."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from divserve.engine.seams import MIXED_INTO
from tests.support import seams
from tests.support.syntax import Class, Member, Module

__all__ = ["SOURCE", "bases", "first", "held", "overrides", "subclasses", "touched", "uses"]

SOURCE = seams.source_of()

CACHE = "vllm.v1.core.kv_cache_manager:KVCacheManager"
QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
HOLDERS = {
    "divserve/engine/scheduler/": {
        **dict.fromkeys(("host", "_host"), SCHEDULER),
        **dict.fromkeys(("_manager", "manager", "kv_cache_manager"), CACHE),
        **dict.fromkeys(("waiting", "kv_holding_waiting", "queue", "theirs"), QUEUE),
        "block_pool": "vllm.v1.core.block_pool:BlockPool",
        "coordinator": "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
        "grammars": "vllm.v1.structured_output:StructuredOutputManager",
        "runner_output": "vllm.v1.outputs:ModelRunnerOutput",
        "scheduler_output": "vllm.v1.core.sched.output:SchedulerOutput",
    },
}
"""Names under which files of a folder hold an object of vLLM's."""

OPEN = {
    *("divserve_chosen", "divserve_guidance", "guidance", "models"),
    *("should_exit", "timeout_graceful_shutdown"),
    *("_fields", "_replace", "__class__", "__name__", "__qualname__"),
}
"""Attributes that we add to foreign objects, uvicorn's, and those of every object or tuple."""
OWN = ("self", "cls", "args")
"""Names of objects that are ours to write to."""


def bases(cls: Class) -> list[Class]:
    """The classes of vLLM that come after a class of ours in the method resolution order."""
    theirs = [base for base in SOURCE.mro(cls) if base.target.startswith("vllm.")]
    for mixed in MIXED_INTO.get(cls.target, ()):
        theirs += SOURCE.mro(SOURCE.get_class(mixed))
    return theirs


def first(classes: list[Class], name: str) -> Member | None:
    return next((cls.members[name] for cls in classes if name in cls.members), None)


def file_of(module: Module) -> str:
    return str(module.path.relative_to(seams.ROOT))


@cache
def subclasses() -> list[tuple[Class, Class, list[Class]]]:
    """Every subclass of vLLM's classes, with each class of ours that it consists of, and vLLM's."""
    return list(_subclasses())


def _subclasses() -> Iterator[tuple[Class, Class, list[Class]]]:
    for _, module in seams.ours(SOURCE):
        for cls in SOURCE.classes(module):
            theirs = bases(cls)
            for part in SOURCE.mro(cls) if theirs else ():
                if not part.target.startswith("vllm."):
                    yield cls, part, theirs


def overrides() -> set[tuple[str, str]]:
    """Members of vLLM's classes that ours override, with our files."""
    found = set()
    for _, part, theirs in subclasses():
        for name in part.overriding:
            member = first(theirs, name)
            # Only a class that knows its base overrides its constructor.
            if member is not None and (name != "__init__" or bases(part)):
                found.add((member.target, file_of(part.module)))
    return found


def own(cls: Class) -> set[str]:
    """What a class of ours has itself: what its body defines, and what its constructor sets."""
    body = [node for node in cls.node.body if getattr(node, "name", "") == "__init__"]
    made = ast.ClassDef(cls.node.name, [], [], body, [])
    return {*cls.overriding, *Class(cls.target, cls.module, made).members}


def uses() -> set[tuple[str, str]]:
    """Members of vLLM's classes that our subclasses use as their own, with our files."""
    found = set()
    for cls, part, theirs in subclasses():
        known = {name for c in SOURCE.mro(cls) if c not in theirs for name in own(c)}
        for node in ast.walk(part.node):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
                member = None if node.attr in known else first(theirs, node.attr)
                if member is not None:
                    found.add((member.target, file_of(part.module)))
    return found


def held() -> set[tuple[str, str]]:
    """Members of vLLM's objects that files use under the names in `HOLDERS`."""
    found = set()
    for file, module in seams.ours(SOURCE):
        holders = next((h for folder, h in HOLDERS.items() if file.startswith(folder)), {})
        for owner, node in module.attributes if holders else ():
            holder = holders.get(owner.rpartition(".")[2])
            member = SOURCE.find(f"{holder}.{node.attr}") if holder else None
            if member is not None:
                found.add((member.target, file))
    return found


def defined_by_us() -> set[str]:
    """Names of all members of our classes."""
    return {
        name
        for _, module in seams.ours(SOURCE)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for name in Class("", module, node).members
    }


def touched() -> set[tuple[str, str]]:
    """Names that are written to foreign objects, or private to them, with our files."""
    known = defined_by_us() | OPEN
    found = set()
    for file, module in seams.ours(SOURCE):
        if not file.startswith(("divserve/engine/", "divserve/startup/")):
            continue
        for owner, node in module.attributes:
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            written = not isinstance(node.ctx, ast.Load)
            if (private or written) and owner not in OWN and node.attr not in known:
                found.add((node.attr, file))
    return found
