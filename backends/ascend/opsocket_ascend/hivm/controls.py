"""Kernels that the lowering has to refuse. Where one passes, what is said of the right kernels is worth nothing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def oversized_vector(x, out, N: tl.constexpr):
    """More at once than the buffer of a vector core holds."""
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at).to(tl.float32) * 2.0)


@triton.jit
def oversized_product(a, b, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """A tile of sums larger than the matrix unit's buffer of results."""
    row, column, depth = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    left = tl.load(a + row[:, None] * DEPTH + depth[None, :])
    right = tl.load(b + depth[:, None] * COLUMNS + column[None, :])
    tl.store(out + row[:, None] * COLUMNS + column[None, :], tl.dot(left, right))


@triton.jit
def later_language(x, out, N: tl.constexpr):
    """What Triton takes since 3.3."""
    at = tl.arange(0, N)
    if N == 8 or N == 16 or N == 32:
        tl.store(out + at, tl.load(x + at))
