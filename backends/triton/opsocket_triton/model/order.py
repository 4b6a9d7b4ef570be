"""Floats as integers of the same order, so that one comparison decides by size and then by index."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def order_of(x):
    """int32 of f32 x, in the order of x; -0 is 0, and NaN is larger than all."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(x == x, order, 0x7FFFFFFF)


@triton.jit
def value_of(order):
    """The f32 whose order it is."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_of(order, index):
    """int64 keys, the largest of which is that of the largest order and, among equals, of the least index >= 0."""
    return (order.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(key):
    """The int32 index in a key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
