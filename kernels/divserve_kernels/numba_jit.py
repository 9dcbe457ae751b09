"""numba's compiler, with a cache that depends on all sources of the back end.

numba keys a cached function by its own file, so a change in another file whose functions are
inlined into it would go unnoticed, and machine code of two versions would mix. Here the cache
folder's name is a checksum of all sources. Without a writable folder every process compiles again
(ten seconds).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import ffi

import divserve_contract

__all__ = ["cached", "compiled"]


def _cache_folder() -> str:
    folder = Path(__file__).parent
    shared = [Path(divserve_contract.__file__), folder / "layout.py"]
    sources = [*shared, *sorted(folder.glob("numba_*.py"))]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    default = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = numba.config.CACHE_DIR or Path(default, "divserve").expanduser()
    return str(Path(base, f"kernels-{digest}"))


_FOLDER = _cache_folder()


# When a CPU engine starts, vLLM reads ``__dict__`` of every object of every loaded module, and
# llvmlite's library mistakes that name for one of its functions. It only affects the second and
# later engines of a process, because numba is not loaded before.
ffi.lib._fntab["__dict__"] = {}


def cached() -> bool:
    """Whether a process has compiled these sources before."""
    return next(Path(_FOLDER).rglob("*.nbi"), None) is not None


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
