"""What this provider's kernels do not do, as reasons. Imports no framework: a "no" must be cheap.

Whatever is not refused here runs: the kernels hold no condition of their own on a request.
"""

from __future__ import annotations

from opsocket.operators import (
    AttentionSpec,
    CacheSpec,
    ContractError,
    GroupedMatmulSpec,
    MatmulSpec,
    Reason,
    Request,
)
from opsocket.quantization import get_format
from opsocket_cpu import layouts

MAX_INT8_COLUMNS = (2**31 - 1) // 127**2
"""Columns whose products of int8 codes always sum within int32."""


def refusals(request: Request) -> tuple[Reason, ...]:
    """Why a request is not served; empty when it is."""
    reasons: list[Reason] = []
    if request.cache is not None:
        if isinstance(request.spec, AttentionSpec):
            reasons += layouts.refusals(request.cache, request.layout)
        else:
            reasons += layouts.kernel_refusals("planar", request.cache, request.layout)
    if isinstance(request.spec, AttentionSpec):
        reasons += _attention(request.spec, request.cache)
    elif hasattr(request.spec, "weight_format"):
        reasons += _weight(request.spec.weight_format, request.spec.n, request.spec.k)
    if isinstance(request.spec, AttentionSpec | MatmulSpec | GroupedMatmulSpec):
        accumulate = request.spec.numerics.accumulate
        if accumulate == "f64":
            reasons.append(Reason("accumulate", "numerics.accumulate", accumulate, ["f32", "f32_truncating"]))
    return tuple(reasons)


def reads_tiles(request: Request) -> bool:
    """Whether an attention that is not refused has its keys and values read out of tiles by a native kernel."""
    if not isinstance(request.spec, AttentionSpec) or request.cache is None:
        return False
    return (request.layout or layouts.layouts_of(request.cache)[0]).id == "tiles16"


def _attention(spec: AttentionSpec, cache: CacheSpec | None) -> list[Reason]:
    if cache is None:
        return []
    pairs = (
        ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
        ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
        ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
    )
    return [Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want]


def _weight(weight_format: str, n: int, k: int) -> list[Reason]:
    fmt = get_format(weight_format)
    try:
        fmt.tensor_specs(n, k)
    except ContractError as error:
        return [Reason("shape", error.argument, error.got, error.want)]
    if fmt.activation == "i8_token" and not fmt.block_k and k > MAX_INT8_COLUMNS:
        return [Reason("shape", "k", k, f"at most {MAX_INT8_COLUMNS} for int32 sums of {fmt.id}")]
    return []
