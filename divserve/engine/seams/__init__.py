"""Every place where divserve depends on vLLM's inner workings, in one list.

Names that are imported from vLLM are not in it, because the tests find imports by themselves.
``docs/seams.md`` shows the list as a table; ``tests/engine/test_seams.py`` compares it with our
source and with vLLM's.
"""

from __future__ import annotations

from collections import defaultdict

from divserve.engine.seams.drafts import DRAFT_SEAMS
from divserve.engine.seams.governor import GOVERNOR_SEAMS
from divserve.engine.seams.http import HTTP_SEAMS
from divserve.engine.seams.objects import OBJECT_SEAMS
from divserve.engine.seams.sampling import SAMPLING_SEAMS
from divserve.engine.seams.scheduler import SCHEDULER_SEAMS
from divserve.engine.seams.seam import CHECKED, Seam
from divserve.engine.seams.server import SERVER_SEAMS
from divserve.engine.seams.transfer import TRANSFER_SEAMS
from divserve.engine.seams.worker import MIXED_INTO, WORKER_SEAMS

__all__ = ["MIXED_INTO", "SEAMS", "Seam", "table"]

SEAMS: tuple[Seam, ...] = (
    *SCHEDULER_SEAMS,
    *OBJECT_SEAMS,
    *DRAFT_SEAMS,
    *GOVERNOR_SEAMS,
    *TRANSFER_SEAMS,
    *WORKER_SEAMS,
    *SAMPLING_SEAMS,
    *SERVER_SEAMS,
    *HTTP_SEAMS,
)


def table() -> str:
    """The list as Markdown: a table for each of our files."""
    by_file: defaultdict[str, list[Seam]] = defaultdict(list)
    for seam in SEAMS:
        by_file[seam.file].append(seam)
    return "\n".join(_section(file, rows) for file, rows in by_file.items())


def _section(file: str, rows: list[Seam]) -> str:
    lines = [
        f"### `{file}`",
        "",
        "| vLLM | how | what we do there | checked by a test |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{s.target}` | {s.how} | {s.what} | {CHECKED[s.how]} |" for s in rows]
    return "\n".join(lines) + "\n"
