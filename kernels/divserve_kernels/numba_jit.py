"""numba's compiler, with a cache that depends on all sources of the back end.

numba keys a cached function by its own file, so a change in another file whose functions are
inlined into it would go unnoticed, and machine code of two versions would mix. Here the cache
folder's name is a checksum of all sources. Without a writable folder every process compiles again
(ten seconds).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import ffi
from numba.core.caching import FunctionCache

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


class _Cache(FunctionCache):
    """numba's cache of a function, written by one process at a time.

    numba reads the index, chooses a file's name and writes both. Two processes that save different
    signatures at once may choose the same name, and a later process then runs the wrong code.
    """

    def save_overload(self, sig: Any, data: Any) -> None:
        """Saves the machine code of a signature."""
        with Path(_FOLDER, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(sig, data)


def compiled(**options: Any) -> Callable[[Any], Any]:
    """``numba.njit`` with these options, without the GIL, cached."""

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(function, nogil=True, **options)
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _FOLDER
        try:
            # What numba does for ``cache=True``.
            dispatcher._cache = _Cache(function)
        except (OSError, RuntimeError):
            pass
        finally:
            numba.config.CACHE_DIR = before
        return dispatcher

    return decorate
