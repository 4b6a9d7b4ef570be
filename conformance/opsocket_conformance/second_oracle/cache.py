"""What a KV cache stores, as ONNX primitives: f32 where the interface says f32, 8-bit floats by ONNX's own Cast."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from opsocket.operators import KVFormat
from opsocket_conformance.floats import roundoff
from opsocket_conformance.second_oracle.answer import Part, near
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.graph import Graph, Tensor, Writer
from opsocket_conformance.second_oracle.rounding import FRACTION_BITS, nearest_fp8, nearest_integers

Float32 = npt.NDArray[np.float32]


def store(evaluate: Evaluator, values: Float32, fmt: KVFormat, static_scale: Float32 | None = None) -> tuple[Part, ...]:
    """values f32[T, H, D] -> codes, other, scale f64[T, H, D], all of them exactly."""
    inputs = {} if static_scale is None else {"scale": _over_heads(static_scale, fmt)}
    codes, other, scale = evaluate(_graph(fmt), x=np.asarray(values, np.float32), **inputs)
    return Part("codes", codes), Part("other", other), Part("scale", scale)


def static_scale(evaluate: Evaluator, values: Float32, fmt: KVFormat, headroom: float) -> tuple[Part, ...]:
    """A scale calibrated on values f32[T, H, D]: what the suite gives to `allocate_cache`, f32 [1], [H] or [H, D].

    An input of the suite's own making, and no operator: it may differ by what three roundings in f32 cost.
    """
    if not fmt.is_static:
        return (Part("scale", None),)
    (scale,) = evaluate(_calibration(fmt), x=np.asarray(values, np.float32), headroom=np.float64(headroom))
    return (near("scale", scale, 3 * roundoff("f32") * scale),)


@cache
def _calibration(fmt: KVFormat) -> Graph:
    """headroom * amax / m over the elements that share a scale, amax being 2^-10 at least."""
    g = Writer()
    x, headroom = g.input("x", "f32").cast("f64"), g.input("headroom", "f64")
    axes = {"tensor": [0, 1, 2], "head": [0, 2], "channel": [0]}[fmt.granularity]
    largest = g("Max", g("ReduceMax", g("Abs", x), axes, keepdims=0), 2.0**-10)
    scale = headroom * largest / fmt.max_code
    return g.finish(scale=scale.reshape(1) if fmt.granularity == "tensor" else scale)


def _over_heads(scale: Float32, fmt: KVFormat) -> Float32:
    """tensor [1], head [H], channel [H, D], as they broadcast over [T, H, D]."""
    return scale[:, None] if fmt.granularity == "head" else scale


@cache
def _graph(fmt: KVFormat) -> Graph:
    g = Writer()
    x = g.input("x", "f32")
    if not fmt.is_quantized:
        stored = x.cast(fmt.code).cast("f64")
        return g.finish(codes=stored, other=stored, scale=_like(g, g.constant(1.0, "f64"), x))
    scale = _scale(g, x, fmt)
    quotient = g("Where", scale.equals(0.0), 0.0, x / scale)
    if fmt.code in ("i8", "i4", "i2"):
        nearest = nearest_integers(g, quotient, int(fmt.max_code))
    else:
        nearest = nearest_fp8(g, quotient, fmt.code, fmt.max_code)
    # By a power of two nothing is rounded, so that no other code may come of it.
    exact = (scale.bits_as("u32") & FRACTION_BITS).equals(0)
    other = g("Where", exact, nearest.codes, nearest.other)
    codes, other, scale = (part.cast("f64") for part in (nearest.codes, other, scale))
    return g.finish(codes=codes, other=other, scale=_like(g, scale, x))


def _scale(g: Writer, x: Tensor, fmt: KVFormat) -> Tensor:
    """f32. token_head: amax / m over one token and head, rounded to its stored type before it is used."""
    if fmt.granularity == "none":
        return g.constant(1.0, "f32")
    if fmt.is_static:
        return g.input("scale", "f32")
    largest = g("ReduceMax", g("Abs", x), [-1], keepdims=1)
    return (largest / fmt.max_code).cast(fmt.scale_dtype).cast("f32")


def _like(g: Writer, value: Tensor, x: Tensor) -> Tensor:
    return g("Expand", value, g("Shape", x, dtype="i64"))
