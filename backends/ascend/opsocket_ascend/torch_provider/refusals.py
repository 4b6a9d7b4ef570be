"""What this provider's kernels do not do, as reasons. Imports no framework: a "no" must be cheap."""

from __future__ import annotations

from opsocket.operators import (
    AttentionSpec,
    CacheSpec,
    ContractError,
    DeviceInfo,
    EmbeddingSpec,
    GroupedMatmulSpec,
    MatmulSpec,
    Reason,
    Request,
    RopeSpec,
    Spec,
)
from opsocket.operators.rope_frequencies import frequencies, undefined
from opsocket.quantization import get_format
from opsocket_ascend import layouts
from opsocket_ascend.socs import Soc, soc_of

MOST_RADIANS = 6.0
"""Of the frequency of a channel pair with factors: `rope.py` holds it as a fraction of a turn, of less than one."""


def refusals(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """Why a request is not served; empty when it is."""
    reasons = list(dtype_refusals(device, request))
    spec = request.spec
    if request.cache is not None:
        reasons += layouts.refusals(request.cache, request.layout)
    if isinstance(spec, AttentionSpec):
        reasons += _attention(spec, request.cache)
    if isinstance(spec, AttentionSpec | MatmulSpec | GroupedMatmulSpec) and spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    if isinstance(spec, MatmulSpec | GroupedMatmulSpec | EmbeddingSpec):
        reasons += _weight(spec)
    soc = soc_of(device.arch)
    if soc is not None and not soc.has_f32_products:
        reasons += _in_f16(soc, spec, request.cache)
    if isinstance(spec, RopeSpec):
        reasons += rope(spec)
    return tuple(dict.fromkeys(reasons))


def dtype_refusals(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """bf16 on a chip that has none."""
    soc = soc_of(device.arch)
    if soc is None or soc.has_bf16:
        return ()
    names = ("dtype", "x_dtype", "q_dtype", "kv_dtype", "in_dtype", "out_dtype")
    held = [(name, getattr(request.spec, name, None)) for name in names]
    if request.cache is not None:
        held += [(f"cache.{name}.code", f.code) for name, f in (("k", request.cache.k), ("v", request.cache.v)) if f]
    return tuple(Reason("dtype", n, "bf16", f"another dtype: {soc.name} has no bf16") for n, d in held if d == "bf16")


def _in_f16(soc: Soc, spec: Spec, cache: CacheSpec | None) -> list[Reason]:
    """What a matrix unit that rounds its operands to f16 computes: f16 numbers, and others where that is permitted. It
    may cut off sums, as those of the vendor's 16-bit products."""
    if not isinstance(spec, AttentionSpec | MatmulSpec | GroupedMatmulSpec):
        return []
    want = f"f16: the matrix unit of {soc.name} rounds to it"
    coded = False
    if isinstance(spec, AttentionSpec):
        types = [("q_dtype", spec.q_dtype), ("numerics.probabilities", spec.numerics.probabilities)]
        if cache is None:
            types.append(("kv_dtype", spec.kv_dtype))
        for name, fmt in (("k", cache.k), ("v", cache.v)) if cache is not None else ():
            if fmt is not None and fmt.is_quantized:
                coded = True
            elif fmt is not None:
                types.append((f"cache.{name}.code", fmt.code))
    else:
        types = [("x_dtype", spec.x_dtype)]
        if get_format(spec.weight_format).is_float:
            types.append(("weight_format", spec.weight_format))
        else:
            coded = True
    if coded:
        types.append(("numerics.dequantized", spec.numerics.dequantized))
    reasons = [Reason("chip", name, got, want) for name, got in types if got != "f16"]
    if spec.numerics.accumulate != "f32_truncating":
        reasons.append(Reason("chip", "numerics.accumulate", spec.numerics.accumulate, "f32_truncating"))
    return reasons


def _attention(spec: AttentionSpec, cache: CacheSpec | None) -> list[Reason]:
    if cache is None:
        return []
    pairs = (
        ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
        ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
        ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
    )
    return [Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want]


def _weight(spec: MatmulSpec | GroupedMatmulSpec | EmbeddingSpec) -> list[Reason]:
    fmt = get_format(spec.weight_format)
    try:
        fmt.tensor_specs(spec.n, spec.k)
    except ContractError as error:
        return [Reason("shape", error.argument, error.got, error.want)]
    if not fmt.is_float and not fmt.has_integer_codes:
        return [Reason("weight_format", "weight_format", fmt.id, "floats of 16 or 32 bits, or integer codes")]
    if not isinstance(spec, EmbeddingSpec) and fmt.activation != "none":
        return [Reason("activation", "weight_format", fmt.id, "a format whose activations are not quantized")]
    return []


def rope(spec: RopeSpec) -> list[Reason]:
    """Why angles can't be had in whole numbers of a turn's fraction."""
    if reasons := undefined(spec):
        return list(reasons)
    if spec.factors and (most := float(frequencies(spec).max())) > MOST_RADIANS:
        return [Reason("factors", "theta", spec.theta, f"frequencies of at most {MOST_RADIANS}, with factors: {most}")]
    return []
