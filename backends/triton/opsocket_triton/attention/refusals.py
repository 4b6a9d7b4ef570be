"""Why an attention request is not served. No framework is imported here."""

from __future__ import annotations

from typing import Final

from opsocket.operators import AttentionSpec, MergeStatesSpec, Reason, Request

MAX_HEAD_DIM: Final = 576
"""Channels of a row that on-chip memory and registers hold at the smallest tiles."""
MAX_HEADS: Final = 65535
"""Programs of a grid's second dimension."""


def attention(request: Request) -> tuple[Reason, ...]:
    """Empty where the request is served."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    reasons: list[Reason] = []
    for name in ("head_dim_qk", "head_dim_vo"):
        if (got := getattr(spec, name)) > MAX_HEAD_DIM:
            reasons.append(Reason("head_dim", name, got, f"at most {MAX_HEAD_DIM}"))
    if spec.num_kv_heads > MAX_HEADS:
        reasons.append(Reason("heads", "num_kv_heads", spec.num_kv_heads, f"at most {MAX_HEADS}"))
    if cache is not None:
        pairs = (
            ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
            ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
            ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
        )
        reasons += [
            Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want
        ]
    if (accumulate := spec.numerics.accumulate) == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", accumulate, ["f32", "f32_truncating"]))
    return tuple(reasons)


def merge_states(request: Request) -> tuple[Reason, ...]:
    """Empty where the request is served."""
    spec = request.spec
    assert isinstance(spec, MergeStatesSpec)
    if spec.num_heads > MAX_HEADS:
        return (Reason("heads", "num_heads", spec.num_heads, f"at most {MAX_HEADS}"),)
    return ()
