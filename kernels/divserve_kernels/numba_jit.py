"""numba's compiler with a cache that knows all sources of the back end.

numba keys a cached function by its own file, so a change in a file whose functions were inlined
into it would go unnoticed: the machine code of two versions would mix. Here the folder's name is a
checksum of all of them. Without a writable folder every process compiles anew (ten seconds).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import ffi

__all__ = ["compiled"]


def _cache_folder() -> str:
    folder = Path(__file__).parent
    sources = [folder / "layout.py", *sorted(folder.glob("numba_*.py"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    default = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = numba.config.CACHE_DIR or Path(default, "divserve").expanduser()
    return str(Path(base, f"kernels-{digest}"))


_FOLDER = _cache_folder()


def _own_names_only(library: type) -> None:
    """Makes llvmlite's library object deny special names, ``__dict__`` above all.

    It takes any attribute for a function of the C library. A program that looks through all loaded
    modules trips over that: vLLM does, whenever an engine starts on a CPU.
    """
    symbol = library.__getattr__  # type: ignore[attr-defined]

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        if name.startswith("__"):
            raise AttributeError(name)
        return symbol(self, name)

    library.__getattr__ = __getattr__  # type: ignore[attr-defined]


_own_names_only(type(ffi.lib))


def compiled(**options: Any) -> Callable[[Any], Any]:
    """``numba.njit`` with these options, without the GIL, cached."""

    def decorate(function: Any) -> Any:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _FOLDER
        try:
            return numba.njit(function, cache=True, nogil=True, **options)
        except (OSError, RuntimeError):
            return numba.njit(function, nogil=True, **options)
        finally:
            numba.config.CACHE_DIR = before

    return decorate
