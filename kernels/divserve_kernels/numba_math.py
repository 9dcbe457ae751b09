"""float32 arithmetic that LLVM turns into vector instructions: exp, log, order, limits.

numba calls libm for each single number unless Intel's SVML is there, which costs ten times the
memory traffic of a row. These are Cephes' polynomials (expf, logf; relative error below 2e-7).
Comparisons are written so that NaN passes through them: a broken row shows in its statistics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from divserve_kernels import layout
from divserve_kernels.numba_jit import compiled

__all__ = [
    "INFINITY", "LOG_ZERO", "TINY", "F", "as_bits", "as_float", "at_least", "exp", "log",
    "log_prob", "ordered", "unordered", "vector",
]  # fmt: skip

F = np.float32
INFINITY, LOG_ZERO, TINY = F(math.inf), F(layout.LOG_ZERO), F(layout.TINY)
LOG2E, LN2_HIGH, LN2_LOW = F(1.44269504), F(0.693359375), F(-2.12194440e-4)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
SIGN = np.int32(0x7FFFFFFF)

# Sums may be reordered for vector code; NaN and infinity keep their meaning.
vector = compiled(fastmath={"reassoc", "contract", "arcp", "nsz"})


@intrinsic
def as_float(_context: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def as_bits(_context: Any, number: Any) -> Any:
    """The bits of a float32 as an int32."""

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


# Not reassociated: the reduction relies on n·ln 2 being subtracted in two parts.
@compiled(fastmath={"contract"})
def exp(x: Any) -> Any:
    """e^x for −87 < x < 88; NaN stays NaN."""
    n = np.floor(x * LOG2E + F(0.5))
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = F(1.9875691500e-4) * r + F(1.3981999507e-3)
    y = y * r + F(8.3334519073e-3)
    y = y * r + F(4.1665795894e-2)
    y = y * r + F(1.6666665459e-1)
    y = y * r + F(5.0000001201e-1)
    y = y * (r * r) + r + F(1)
    return y * as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@compiled(fastmath={"contract"})
def log(x: Any) -> Any:
    """ln x for normal positive x; log(1) is exactly 0; NaN stays NaN."""
    bits = as_bits(x)
    steps = (bits - SQRT_HALF_BITS) >> np.int32(23)
    e = F(steps)
    m = as_float(bits - (steps << np.int32(23))) - F(1)
    y = F(7.0376836292e-2) * m - F(1.1514610310e-1)
    y = y * m + F(1.1676998740e-1)
    y = y * m - F(1.2420140846e-1)
    y = y * m + F(1.4249322787e-1)
    y = y * m - F(1.6668057665e-1)
    y = y * m + F(2.0000714765e-1)
    y = y * m - F(2.4999993993e-1)
    y = y * m + F(3.3333331174e-1)
    y = y * m * (m * m)
    y = y + e * LN2_LOW - F(0.5) * (m * m)
    return (m + y) + e * LN2_HIGH


@compiled()
def ordered(x: Any) -> Any:
    """An integer with the same order as the float (LLVM has no vector maximum that keeps NaN)."""
    bits = as_bits(x)
    return bits ^ ((bits >> np.int32(31)) & SIGN)


@compiled()
def unordered(key: Any) -> Any:
    """Inverse of `ordered`."""
    return as_float(key ^ ((key >> np.int32(31)) & SIGN))


@compiled()
def log_prob(z: Any, lse: Any) -> Any:
    """z − lse, with `LOG_ZERO` for everything below it."""
    x = z - lse
    return LOG_ZERO if x < LOG_ZERO else x


@compiled()
def at_least(x: Any, low: Any) -> Any:
    """max(x, low); NaN stays."""
    return low if x < low else x
