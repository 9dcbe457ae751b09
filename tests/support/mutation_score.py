"""How many of mutmut's mutants the tests have killed, by module; fails below 85 %."""

from __future__ import annotations

import json
import sys
from collections import Counter

from tests.support.models import ROOT

LEAST = 0.85
MUTANTS = ROOT / "mutants"
SURVIVED = (0, 5, 33)
"""mutmut's codes of mutants that pass all tests, or that no test runs; None: not tried yet."""


def main() -> int:
    """Prints a line per module and one for all; 1 if too few were killed, or not all were tried."""
    total: Counter[str] = Counter()
    for file in sorted(MUTANTS.glob("divserve/**/*.meta")):
        codes = json.loads(file.read_text())["exit_code_by_key"].values()
        counts = Counter(
            "untried" if code is None else "survived" if code in SURVIVED else "found"
            for code in codes
        )
        total += counts
        sys.stdout.write(line(str(file.relative_to(MUTANTS)).removesuffix(".meta"), counts))
    sys.stdout.write(line("all", total))
    return int(total["untried"] > 0 or share(total) < LEAST)


def share(counts: Counter[str]) -> float:
    """The share of the tried mutants that was killed; 0 if none was tried."""
    return counts["found"] / max(counts["found"] + counts["survived"], 1)


def line(name: str, counts: Counter[str]) -> str:
    untried = f", {counts['untried']} not tried" if counts["untried"] else ""
    tried = counts["found"] + counts["survived"]
    return f"{name:42} {counts['found']:5} of {tried:5} {share(counts):7.1%}{untried}\n"


if __name__ == "__main__":
    sys.exit(main())
