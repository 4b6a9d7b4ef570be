"""What the kernels do not do, as reasons. Whatever is not refused here is run, and conformance holds you to it.

A knob that a kernel would ignore must be refused: a model that needs it would be wrong without anyone noticing.
"""

from __future__ import annotations

from typing import Final

from opsocket.operators import AttentionSpec, CacheSpec, ContractError, Reason, Request, RopeSpec, Spec
from opsocket.operators.rope_frequencies import undefined
from opsocket.quantization import get_format
from opsocket_template import layouts

FLOATS: Final = ["f32", "f16"]  # NumPy has no bf16
_DTYPE_FIELDS: Final = ("dtype", "q_dtype", "kv_dtype", "x_dtype", "in_dtype", "out_dtype")


def refusals(request: Request) -> tuple[Reason, ...]:
    """Why a request is not served; empty when it is."""
    spec = request.spec
    reasons = [
        Reason("dtype", name, getattr(spec, name), FLOATS)
        for name in _DTYPE_FIELDS
        if getattr(spec, name, "f32") not in FLOATS
    ]
    if request.cache is not None:
        reasons += layouts.refusals(request.cache, request.layout)
    if isinstance(spec, AttentionSpec) and request.cache is not None:
        reasons += _mismatches(spec, request.cache)
    if isinstance(spec, RopeSpec):
        reasons += undefined(spec)
    numerics = getattr(spec, "numerics", None)
    if numerics is not None and numerics.accumulate == "f64":  # all else there is permission to be less exact
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", "f32"))
    if hasattr(spec, "weight_format"):
        reasons += _weight(spec)
    return tuple(reasons)


def _mismatches(spec: AttentionSpec, cache: CacheSpec) -> list[Reason]:
    pairs = (
        ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
        ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
        ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
    )
    return [Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want]


def _weight(spec: Spec) -> list[Reason]:
    """Every format that opsocket can dequantize, for shapes that are whole groups of it."""
    try:
        get_format(spec.weight_format).tensor_specs(spec.n, spec.k)
    except ContractError as error:
        return [Reason("shape", error.argument, error.got, error.want)]
    return []
