"""Resources of kernels that Triton has compiled for a GPU, read without one."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton

__all__ = ["Kernel", "resources"]

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Kernel(NamedTuple):
    """One kernel."""

    name: str
    arch: int
    warps: int
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread; most are spilled registers."""


def resources(cache: Path) -> list[Kernel]:
    """The kernels in a cache of Triton."""
    found = []
    for cubin in sorted(cache.rglob("*.cubin")):
        command = [str(TOOL), "-res-usage", str(cubin)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", run.stdout)[-1]
        metadata = json.loads(cubin.with_suffix(".json").read_text())
        arch, warps = metadata["target"]["arch"], metadata["num_warps"]
        found.append(Kernel(cubin.stem, arch, warps, int(registers), int(stack)))
    return found
