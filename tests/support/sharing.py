"""How the workers of pytest-xdist share the files: by cost, and by the server that they use."""

from __future__ import annotations

from typing import Any

import pytest

SERVERS: dict[str, tuple[str, ...]] = {
    "SmolLM2's server": (
        "composition",
        "openai_client",
        "documented",
        "refusals",
        "routes",
        "metrics",
        "scores",
        "disconnect",
        "playground",
        "killed",
    ),
    "the server of tiny models": ("look_back", "two_models", "traces", "drain"),
}
"""Files of ``tests/e2e`` by the server that they use; the last one may end it."""

GROUPS = {
    f"tests/e2e/test_{name}.py": (server, place)
    for server, names in SERVERS.items()
    for place, name in enumerate(names)
}

LONGEST = (
    "tests/e2e",
    "tests/smollm2",
    "tests/engine/test_many_prompts.py",
    "tests/engine/test_runners.py",
    "tests/kernels",
    "tests/engine",
    "tests/distill",
    "tests/loadtest",
    "tests/playground",
    "tests/api/test_schema.py",
    "tests/deploy",
)
"""Path prefixes of the files that take longest; what is not listed comes last."""


def group(nodeid: str) -> str:
    """The group that one worker runs: a file, or all files that use a server."""
    path = nodeid.split("::", 1)[0]
    return GROUPS[path][0] if path in GROUPS else path


def place(nodeid: str) -> tuple[int, str, int]:
    """Sort key of tests: the longest folders first, the files of a server in their order."""
    path = nodeid.split("::", 1)[0]
    known = (i for i, start in enumerate(LONGEST) if path.startswith(start))
    return next(known, len(LONGEST)), *GROUPS.get(path, (path, 0))


def scheduler(config: pytest.Config, log: Any) -> Any:
    """pytest-xdist's scheduler of ``--dist loadfile``, by groups."""
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return ByGroup(config, log)
