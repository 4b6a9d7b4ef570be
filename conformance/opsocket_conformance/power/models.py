"""Correct implementations in every numeric model that a request can declare, in several orders of summation: what the
tolerance is measured with. Written for this purpose; they compute in f32, step by step, as kernels do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from opsocket.operators import AttentionBatch, AttentionSpec, Numerics
from opsocket.quantization import QuantFormat
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.attention.batches import Row
from opsocket_conformance.operators.attention.distributions import Heads, draw
from opsocket_conformance.operators.attention.oracle import Problem
from opsocket_conformance.operators.matmul.weights import Weight

F = np.float32
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Order = Sequence[npt.NDArray[np.int64]]
"""Keys in the groups, and in the order, in which an implementation meets them."""

QUERIES, HEADS, KV_HEADS = 48, 4, 2


def truncated(x: Float64) -> Float32:
    """To f32, towards zero."""
    y = x.astype(F)
    return np.where(np.abs(y) > np.abs(x), np.nextafter(y, F(0)), y)


def added(acc: Float32, a: Float32, b: Float32, numerics: Numerics) -> Float32:
    """acc + a @ b, in the declared accumulator: an f32 product, or steps that each cut off what f32 does not hold."""
    if numerics.accumulate == "f64":
        return (acc + a.astype(np.float64) @ b.astype(np.float64)).astype(F)
    if numerics.accumulate == "f32":
        return (acc + a @ b).astype(F)
    step = numerics.accumulate_step
    for first in range(0, a.shape[-1], step):
        # Products of f32 values, and sums of a few of them, lose nothing in f64 that f32's last place would feel.
        part = slice(first, first + step)
        acc = truncated(acc + a[..., part].astype(np.float64) @ b[part].astype(np.float64))
    return acc


def exponential(kind: str, rng: np.random.Generator) -> Callable[[Float32], Float32]:
    """exact: rounded to f32. approx: up to 2^-12 of relative error on top, as of a hardware unit; exp(0) is 1."""
    if kind == "exact":
        return lambda x: np.exp(x, dtype=F)
    return lambda x: (np.exp(x, dtype=F) * (1 + 2.0**-12 * rng.uniform(-1, 1, x.shape) * (x != 0))).astype(F)


def tangent(kind: str, rng: np.random.Generator) -> Callable[[Float32], Float32]:
    """As `exponential`."""
    if kind == "exact":
        return lambda x: np.tanh(x, dtype=F)
    return lambda x: (np.tanh(x, dtype=F) * (1 + 2.0**-12 * rng.uniform(-1, 1, x.shape))).astype(F)


def problem(
    kind: str,
    rng: np.random.Generator,
    dtype: str,
    out_dtype: str,
    numerics: Numerics,
    *,
    cap: float | None = None,
    sinks: bool = False,
    keys: int = 700,
    d: int = 64,
) -> Problem:
    """One request of `QUERIES` unmasked queries, from a distribution of the suite. Where numerics say that keys and
    values are rounded once dequantized, they are f32 numbers such as a quantized cache stands for."""
    heads, rows = Heads(HEADS, KV_HEADS, d, d, dtype, None, 16, cap), [Row(QUERIES, keys)]
    drawn = draw(kind, rng, heads, rows)
    quantized = numerics.dequantized != "f32"
    held = "f32" if quantized else dtype
    q, k, v = (
        round_to(a, t).astype(np.float64) for a, t in ((drawn.q, dtype), (drawn.keys[0], held), (drawn.values[0], held))
    )
    spec = AttentionSpec(
        HEADS, KV_HEADS, d, d, float(F(1.25 / np.sqrt(d))), "full", softcap=cap, q_dtype=dtype, out_dtype=out_dtype,
        numerics=numerics, want_lse=True, sinks=sinks,
    )  # fmt: skip
    batch = AttentionBatch(np.array([0, QUERIES]), np.array([keys]))
    given = rng.normal(1, 1, HEADS).astype(F).astype(float) if sinks else None
    return Problem(spec, batch, q, [k], [v], given, quantized=quantized)


def flash(
    problem: Problem, tiles: Order, *, rng: np.random.Generator, early_scale: bool = False, base2: bool = False
) -> tuple[Float32, Float32]:
    """out f32[T, Hq, Dv], lse f32[T, Hq] of one request without masks: online softmax over tiles of keys.

    early_scale: queries are scaled before the product. base2: exponentials to base 2 inside.
    """
    spec, numerics = problem.spec, problem.spec.numerics
    q, k, v = (a.astype(F) for a in (problem.q, problem.keys[0], problem.values[0]))
    if problem.quantized:
        k, v = (round_to(a, numerics.dequantized) for a in (k, v))
    exp, tanh = exponential(numerics.exp, rng), tangent(numerics.tanh, rng)
    out, lse = np.empty((*q.shape[:2], v.shape[2]), F), np.empty(q.shape[:2], F)
    log2e = F(1.4426950408889634)
    for head in range(spec.num_q_heads):
        rows = (q[:, head] * F(spec.scale)).astype(F) if early_scale else q[:, head]
        top, total = np.full((len(q), 1), -np.inf, F), np.zeros((len(q), 1), F)
        acc = np.zeros((len(q), v.shape[2]), F)
        if problem.sinks is not None:
            top, total = np.full((len(q), 1), problem.sinks[head], F), np.ones((len(q), 1), F)
        for tile in tiles:
            s = added(np.zeros((len(q), len(tile)), F), rows, k[tile, head // spec.group].T, numerics)
            s = s if early_scale else s * F(spec.scale)
            if spec.softcap is not None:
                s = F(spec.softcap) * tanh(s / F(spec.softcap))
            new = np.maximum(top, s.max(axis=1, keepdims=True))
            if base2:
                p, shrink = np.exp2((s - new) * log2e, dtype=F), np.exp2((top - new) * log2e, dtype=F)
            else:
                p, shrink = exp(s - new), exp(top - new)
            total = total * shrink + p.sum(axis=1, keepdims=True, dtype=F)
            rounded = round_to(p, numerics.probabilities)
            acc = added(acc * shrink, rounded, v[tile, head // spec.group], numerics)
            top = new
        out[:, head] = round_to(acc / total, spec.out_dtype)
        lse[:, head] = (top + np.log(total, dtype=F))[:, 0]
    return out, lse


def tilings(count: int) -> Iterator[tuple[str, Order]]:
    """Orders of summation by name."""
    order = np.arange(count)
    yield "whole", [order]
    yield "tiles of 48", np.array_split(order, -(-count // 48))
    yield "tiles of 16, reversed", np.array_split(order[::-1], -(-count // 16))
    yield "5 strided parts", [order[i::5] for i in range(5)]


# ---- matrix products


def chained(x: Float32, w: Float32) -> Float32:
    """x f32[M, K], w f32[N, K]: one f32 accumulator, column after column."""
    acc = np.zeros((len(x), len(w)), F)
    for j in range(x.shape[1]):
        acc += x[:, j : j + 1] * w[:, j]
    return acc


def in_lanes(x: Float32, w: Float32, lanes: int) -> Float32:
    """As SIMD kernels do: `lanes` partial sums, added at the end."""
    parts = np.stack([chained(x[:, i::lanes], w[:, i::lanes]) for i in range(lanes)])
    summed: Float32 = np.sum(parts, axis=0, dtype=F)
    return summed


def apart(fmt: QuantFormat, tensors: Mapping[str, npt.NDArray[np.generic]], x: Float32, n: int, k: int) -> Float32:
    """Codes and zero points or minimums summed apart, group by group, scales applied to the sums."""
    group = fmt.group(tensors, n, k)
    columns = x if group.input_permutation is None else x[:, group.input_permutation]
    y = np.zeros((len(x), n), F)
    offset = F(8)
    for g in range(k // group.group_size):
        part = slice(g * group.group_size, (g + 1) * group.group_size)
        xs = columns[:, part]
        codes = group.codes[:, part].astype(F) + offset
        y += group.scale[:, g] * (chained(xs, codes) - offset * xs.sum(axis=1, keepdims=True, dtype=F))
        if group.minimum is not None:
            y -= group.minimum[:, g] * xs.sum(axis=1, keepdims=True, dtype=F)
    return y


def int8_products(
    fmt: QuantFormat, tensors: Mapping[str, npt.NDArray[np.generic]], x: Float32, n: int, k: int
) -> Iterator[tuple[str, Float32]]:
    """Products with int8 activations in several orders, by name: sums of codes exact for each piece of columns that
    share their scales, all else in f32, step by step."""
    weight = fmt.group(tensors, n, k)
    columns = x if weight.input_permutation is None else x[:, weight.input_permutation]
    shared = ACTIVATION_GROUP if fmt.activation == "i8_g32" else k
    rows = columns.reshape(-1, shared).astype(F)
    of_x = (np.abs(rows).max(axis=1, keepdims=True) / F(127)).astype(F)
    codes = np.rint(np.divide(rows, of_x, out=np.zeros_like(rows), where=of_x != 0)).astype(np.int64)
    codes, of_x = codes.reshape(len(x), k), of_x.reshape(len(x), -1)
    of_w, minimum, group = weight.scale, weight.minimum, weight.group_size
    stored = weight.codes.astype(np.int64)

    def by_pieces(piece: int, lanes: int, scales_first: bool) -> Float32:
        parts = np.zeros((lanes, len(x), n), F)
        for number, first in enumerate(range(0, k, piece)):
            part, g = slice(first, first + piece), first // group
            s = of_x[:, first // shared, None]
            total = (codes[:, part] @ stored[:, part].T).astype(F)
            term = (s * of_w[:, g]) * total if scales_first else s * (of_w[:, g] * total)
            if minimum is not None:
                taken = codes[:, part].sum(axis=1, keepdims=True).astype(F)
                term = term - minimum[:, g] * (s * taken)
            parts[number % lanes] += term
        summed: Float32 = np.sum(parts, axis=0, dtype=F)
        return summed

    piece = math.gcd(group, shared)
    yield "one chain", by_pieces(piece, 1, scales_first=True)
    yield "4 lanes, the weight's scale first", by_pieces(piece, 4, scales_first=False)
    yield "pieces of 16", by_pieces(math.gcd(piece, 16), 1, scales_first=False)


def with_rounded_scales(fmt: QuantFormat, weight: Weight, dtype: str) -> Float32:
    """The weight in codes whose scales and minimums are rounded to `dtype`, [N, K] in f32."""
    minimum = weight.apart if fmt.zero == "float_min" else np.zeros_like(weight.value)
    codes = np.divide(
        weight.value + minimum, weight.scale, out=np.zeros_like(weight.value), where=weight.scale != 0
    ).astype(F)
    return round_to(weight.scale, dtype) * codes - round_to(minimum, dtype)


def products(x: Float32, w: Float32, numerics: Numerics) -> Iterator[tuple[str, Float32]]:
    """x W^T in several orders of summation, by name; `w` has been rounded to `numerics.dequantized` by the caller."""
    zero = np.zeros((len(x), len(w)), F)
    yield "as declared", added(zero, x, np.ascontiguousarray(w.T), numerics)
    if numerics.accumulate == "f32_truncating":
        yield "as declared, reversed", added(zero, x[:, ::-1], w.T[::-1], numerics)
        half = x.shape[1] // 2
        first = added(zero, x[:, :half], w.T[:half], numerics)
        yield "in two halves", first + added(zero, x[:, half:], w.T[half:], numerics)
        return
    yield "one chain", chained(x, w)
    yield "8 lanes", in_lanes(x, w, 8)
    yield "16 lanes", in_lanes(x, w, 16)
