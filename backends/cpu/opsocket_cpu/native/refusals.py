"""What the native kernels do not do, as reasons, by operator. Whatever is not refused here runs."""

from __future__ import annotations

from typing import Any

from opsocket.operators import AttentionSpec, ContractError, Reason, Request, RopeSpec
from opsocket.operators.rope_frequencies import undefined
from opsocket.quantization import get_format
from opsocket_cpu import layouts

MAX_COLUMNS = 1 << 18
"""A row in f32 has to lie in a thread's own memory."""

MAX_INT8_COLUMNS = (2**31 - 1) // (127 * 128)
"""Columns whose products of int8 codes always sum within int32."""

MAX_ROTARY_DIM = 1 << 16
"""One position's cosines and sines have to lie in a thread's own memory."""

MAX_ATTENTION_DIM = 1024
"""Of a head: tiles of 64 keys and values have to lie in a thread's own memory."""


def nothing(request: Request) -> tuple[Reason, ...]:
    """For kernels that take every request of their operator."""
    return ()


def columns(request: Request) -> tuple[Reason, ...]:
    """Rows beyond a thread's own memory."""
    spec: Any = request.spec
    return (Reason("shape", "k", spec.k, f"at most {MAX_COLUMNS}"),) if spec.k > MAX_COLUMNS else ()


def weight(request: Request) -> tuple[Reason, ...]:
    """Shapes that a weight's format can't have, and rows beyond a thread's own memory."""
    spec: Any = request.spec
    if spec.k > MAX_COLUMNS:
        return (Reason("shape", "k", spec.k, f"at most {MAX_COLUMNS}"),)
    try:
        get_format(spec.weight_format).tensor_specs(spec.n, spec.k)
    except ContractError as error:
        return (Reason("shape", error.argument, error.got, error.want),)
    return ()


def matmul_a8(request: Request) -> tuple[Reason, ...]:
    """What `weight` refuses, sums in f64, and rows whose products don't sum within int32."""
    spec: Any = request.spec
    reasons, fmt = list(weight(request)), get_format(spec.weight_format)
    if fmt.activation == "i8_token" and not fmt.block_k and spec.k > MAX_INT8_COLUMNS:
        reasons.append(Reason("shape", "k", spec.k, f"at most {MAX_INT8_COLUMNS} for int32 sums of {fmt.id}"))
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    return tuple(reasons)


def matmul_a16(request: Request) -> tuple[Reason, ...]:
    """What `weight` refuses, int8 activations, and sums in f64."""
    spec: Any = request.spec
    reasons = list(weight(request))
    if (activation := get_format(spec.weight_format).activation) != "none":
        reasons.append(Reason("activation", "weight_format", activation, ["none"]))
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    return tuple(reasons)


def rope(request: Request) -> tuple[Reason, ...]:
    """A scaling whose formula divides by zero, and heads beyond any model's."""
    assert isinstance(request.spec, RopeSpec)
    if request.spec.rotary_dim > MAX_ROTARY_DIM:
        return (Reason("size", "rotary_dim", request.spec.rotary_dim, f"at most {MAX_ROTARY_DIM}"),)
    return undefined(request.spec)


def cache(request: Request) -> tuple[Reason, ...]:
    """For kernels that work on tiles and take every request over them."""
    assert request.cache is not None
    return layouts.kernel_refusals("tiles16", request.cache, request.layout)


def attention(request: Request) -> tuple[Reason, ...]:
    """Sums in f64, caches in another layout than tiles, and heads beyond any model's."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    reasons: list[Reason] = []
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    for name in ("head_dim_qk", "head_dim_vo"):
        if getattr(spec, name) > MAX_ATTENTION_DIM:
            reasons.append(Reason("head_dim", name, getattr(spec, name), f"at most {MAX_ATTENTION_DIM}"))
    if cache is None:
        return tuple(reasons)
    reasons += layouts.kernel_refusals("tiles16", cache, request.layout)
    if cache.kind == "kv":
        pairs = (
            ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
            ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
            ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
        )
        reasons += [
            Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want
        ]
    return tuple(reasons)
