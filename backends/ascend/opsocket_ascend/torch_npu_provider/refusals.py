"""What the vendor's operators do not do, or are not permitted to: a function for each. Imports no framework.

Where a limit is not self-evident, it is the vendor's documentation of the operator (in the torch_npu wheel). What it
does not document is not claimed: probabilities are rounded to the type of q before they meet V, matrix units may cut
off, exp is the vector unit's. Requests that permit none of that go to the next provider.
"""

from __future__ import annotations

from opsocket.operators import (
    AttentionSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    GroupedMatmulSpec,
    MatmulSpec,
    Numerics,
    QuantizeActivationSpec,
    Reason,
    Request,
    RopeSpec,
)
from opsocket.operators.rope_frequencies import magnitude
from opsocket.quantization import get_format
from opsocket_ascend.layouts import KERNEL_BLOCK, rotary_channels
from opsocket_ascend.torch_provider.refusals import rope as torch_rope

HALVES = ("f16", "bf16")
MOST_GROUP, MOST_HEADS, MOST_HEAD_DIM, MOST_ROW = 64, 256, 512, 65535
HEAD_DIM_MULTIPLE, INT8_HEAD_DIM_MULTIPLE = 16, 32
LATENT_DIM, ROPE_DIM = 512, 64
MOST_SINK_DIM = 128
LATENT_HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_COLUMNS = 65535
GROUP_MULTIPLE = 32
INT4_COLUMNS = 8
MOST_EXPERTS = 128
MOST_ROTARY_HEADS, MOST_ROTARY_DIM = 1000, 896


def rms_norm(request: Request) -> tuple[Reason, ...]:
    """npu_rms_norm is given f32, whatever the request's dtype: nothing is refused."""
    return ()


def cache_write(request: Request) -> tuple[Reason, ...]:
    """npu_scatter_pa_kv_cache copies elements of one dtype, of two arrays at once: keys and values, or the two parts of
    latent vectors."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, CacheWriteSpec)
    assert cache is not None
    if cache.v is None and not rotary_channels(cache):
        return (Reason("cache", "cache.head_dim_k", cache.head_dim_k, "more channels than values: two arrays"),)
    codes = {"cache.k.code": cache.k.code} | ({} if cache.v is None else {"cache.v.code": cache.v.code})
    return tuple(Reason("kv_format", n, c, f"{spec.dtype}, as k comes") for n, c in codes.items() if c != spec.dtype)


def attention(request: Request) -> tuple[Reason, ...]:
    """npu_fused_infer_attention_score, layout TND over pages."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    reasons = []
    if spec.q_dtype not in HALVES:
        reasons.append(Reason("dtype", "q_dtype", spec.q_dtype, list(HALVES)))
    if spec.out_dtype != spec.q_dtype:
        reasons.append(Reason("dtype", "out_dtype", spec.out_dtype, f"{spec.q_dtype}, as q"))
    reasons += _permitted(spec.numerics, spec.q_dtype, softmax=True)
    for name, off in (("softcap", None), ("alibi", False), ("deterministic", False)):
        if getattr(spec, name) != off:
            reasons.append(Reason("knob", name, getattr(spec, name), off))
    if spec.sinks:
        reasons += _sinks(spec, cache)
    if spec.mask == "tree":
        reasons.append(Reason("mask", "mask", spec.mask, ["causal", "full"]))
    if spec.mask != "causal":
        for name in ("window_left", "window_right"):
            if getattr(spec, name) is not None:
                want = "None: a band ends at the last key, wherever the queries are"
                reasons.append(Reason("window", name, getattr(spec, name), want))
    if spec.num_q_heads > MOST_HEADS:
        reasons.append(Reason("heads", "num_q_heads", spec.num_q_heads, f"at most {MOST_HEADS}"))
    if cache is None:
        return (*reasons, Reason("cache", "cache", None, "a paged cache"))
    reasons += _paged(spec, cache)
    return (*reasons, *(_latent(spec, cache) if cache.kind == "latent" else _heads(spec, cache)))


def _sinks(spec: AttentionSpec, cache: CacheSpec | None) -> list[Reason]:
    """Version 2 with learnable_sink."""
    reasons = []
    if spec.q_dtype != "bf16":
        reasons.append(Reason("sinks", "q_dtype", spec.q_dtype, "bf16: sinks are bf16"))
    if spec.numerics.sinks != "bf16":
        reasons.append(Reason("numerics", "numerics.sinks", spec.numerics.sinks, "bf16"))
    if spec.want_lse:
        reasons.append(Reason("sinks", "want_lse", True, "False: whether an LSE has the sink in it is not documented"))
    if spec.head_dim_vo > MOST_SINK_DIM:
        reasons.append(Reason("sinks", "head_dim_vo", spec.head_dim_vo, f"at most {MOST_SINK_DIM}"))
    if cache is not None and (cache.kind == "latent" or cache.k.is_quantized):
        got = "latent" if cache.kind == "latent" else cache.k.code
        reasons.append(Reason("sinks", "cache", got, "keys and values as they come"))
    return reasons


def _paged(spec: AttentionSpec, cache: CacheSpec) -> list[Reason]:
    reasons = []
    if cache.block_size % KERNEL_BLOCK:
        reasons.append(Reason("block_size", "cache.block_size", cache.block_size, f"a multiple of {KERNEL_BLOCK}"))
    pairs = (
        ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
        ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
        ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
    )
    return reasons + [
        Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want
    ]


def _latent(spec: AttentionSpec, cache: CacheSpec) -> list[Reason]:
    """Version 2 with query_rope and key_rope."""
    reasons = []
    dims = (spec.head_dim_vo, spec.head_dim_qk - spec.head_dim_vo)
    if dims != (LATENT_DIM, ROPE_DIM):
        want = f"{LATENT_DIM + ROPE_DIM}, of which {LATENT_DIM} are values"
        reasons.append(Reason("head_dim", "head_dim_qk", f"{spec.head_dim_qk}, of which {dims[0]}", want))
    if spec.num_q_heads not in LATENT_HEADS:
        reasons.append(Reason("heads", "num_q_heads", spec.num_q_heads, list(LATENT_HEADS)))
    if cache.k.code != spec.q_dtype:
        reasons.append(Reason("kv_format", "cache.k.code", cache.k.code, f"{spec.q_dtype}, as q"))
    if spec.window_left is not None:
        reasons.append(Reason("window", "window_left", spec.window_left, "None over latent pages"))
    return reasons


def _heads(spec: AttentionSpec, cache: CacheSpec) -> list[Reason]:
    """Keys and values apart, as they come or in int8."""
    assert cache.v is not None
    reasons = []
    if spec.head_dim_qk != spec.head_dim_vo:
        reasons.append(Reason("head_dim", "head_dim_vo", spec.head_dim_vo, f"head_dim_qk={spec.head_dim_qk}"))
    if spec.group > MOST_GROUP:
        reasons.append(Reason("heads", "num_kv_heads", spec.num_kv_heads, f"at least num_q_heads / {MOST_GROUP}"))
    quantized = cache.k.is_quantized or cache.v.is_quantized
    multiple = INT8_HEAD_DIM_MULTIPLE if quantized else HEAD_DIM_MULTIPLE
    if spec.head_dim_qk % multiple or spec.head_dim_qk > MOST_HEAD_DIM:
        want = f"a multiple of {multiple}, at most {MOST_HEAD_DIM}"
        reasons.append(Reason("head_dim", "head_dim_qk", spec.head_dim_qk, want))
    if spec.num_kv_heads * spec.head_dim_qk > MOST_ROW:
        got = spec.num_kv_heads * spec.head_dim_qk
        reasons.append(Reason("heads", "num_kv_heads * head_dim_qk", got, f"at most {MOST_ROW}"))
    for name, fmt in (("k", cache.k), ("v", cache.v)):
        if fmt.code not in (spec.q_dtype, "i8") or (fmt.code == "i8") != quantized:
            want = f"{spec.q_dtype}, or i8 of K and V"
            reasons.append(Reason("kv_format", f"cache.{name}.code", fmt.code, want))
        elif fmt.code == "i8" and (fmt.granularity, fmt.scale_dtype) != ("token_head", "f32"):
            got = f"{fmt.granularity} {fmt.scale_dtype}"
            reasons.append(Reason("kv_format", f"cache.{name}.granularity", got, "token_head f32: no other keeps f32"))
    if quantized:
        if spec.window_left is not None:
            want = "None over int8 pages, where sequences have one query, and the operator no mask then"
            reasons.append(Reason("window", "window_left", spec.window_left, want))
        if spec.numerics.dequantized != spec.q_dtype:
            reasons.append(Reason("numerics", "numerics.dequantized", spec.numerics.dequantized, spec.q_dtype))
    return reasons


def matmul(request: Request) -> tuple[Reason, ...]:
    """torch's product of 16-bit matrices (npu_grouped_matmul, of one group, where there is a bias), npu_dynamic_quant
    with npu_quant_matmul, or npu_weight_quant_batchmatmul."""
    spec = request.spec
    assert isinstance(spec, MatmulSpec)
    fmt = get_format(spec.weight_format)
    reasons = _product(spec)
    if reasons:
        return tuple(reasons)
    if spec.x_dtype not in HALVES:
        reasons.append(Reason("dtype", "x_dtype", spec.x_dtype, list(HALVES)))
    if spec.out_dtype != spec.x_dtype:
        reasons.append(Reason("dtype", "out_dtype", spec.out_dtype, f"{spec.x_dtype}, as x"))
    if fmt.activation == "i8_token" and fmt.base.id == "i8_channel":
        reasons += _columns(spec)
        if spec.numerics.accumulate == "f64":
            reasons.append(Reason("numerics", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
        return tuple(reasons)
    if fmt.activation != "none":
        return (Reason("weight_format", "weight_format", fmt.id, "i8_channel_a8, of those with int8 activations"),)
    reasons += _permitted(spec.numerics, spec.x_dtype, softmax=False)
    reasons += _bias(spec)
    return (*reasons, *(_float(spec) if fmt.is_float else _codes(spec)))


def grouped_matmul(request: Request) -> tuple[Reason, ...]:
    """npu_grouped_matmul: one x, a list of weights, one result."""
    spec = request.spec
    assert isinstance(spec, GroupedMatmulSpec)
    fmt = get_format(spec.weight_format)
    reasons = _product(spec)
    if reasons:
        return tuple(reasons)
    if spec.x_dtype not in HALVES:
        reasons.append(Reason("dtype", "x_dtype", spec.x_dtype, list(HALVES)))
    if spec.out_dtype != spec.x_dtype:
        reasons.append(Reason("dtype", "out_dtype", spec.out_dtype, f"{spec.x_dtype}, as x"))
    if spec.num_experts > MOST_EXPERTS:
        reasons.append(Reason("experts", "num_experts", spec.num_experts, f"at most {MOST_EXPERTS}"))
    reasons += _columns(spec)
    if fmt.activation == "i8_token" and fmt.base.id == "i8_channel":
        if spec.x_dtype != "f16":
            reasons.append(Reason("dtype", "x_dtype", spec.x_dtype, "f16: the scales of results in bf16 are bf16"))
        if spec.bias:
            reasons.append(Reason("bias", "bias", True, "False: it would be an int32"))
        if spec.numerics.accumulate == "f64":
            reasons.append(Reason("numerics", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
        return tuple(reasons)
    if fmt.activation != "none":
        return (Reason("weight_format", "weight_format", fmt.id, "i8_channel_a8, of those with int8 activations"),)
    reasons += _permitted(spec.numerics, spec.x_dtype, softmax=False)
    reasons += _bias(spec)
    if fmt.is_float:
        return (*reasons, *_float(spec))
    if (fmt.bits > 4 and fmt.block_k) or fmt.g_idx:
        want = "codes of up to 4 bits, or with a scale per column, and columns in their order"
        return (*reasons, Reason("weight_format", "weight_format", fmt.id, want))
    return (*reasons, *_codes(spec))


def _product(spec: MatmulSpec | GroupedMatmulSpec) -> list[Reason]:
    try:
        get_format(spec.weight_format).tensor_specs(spec.n, spec.k)
    except ContractError as error:
        return [Reason("shape", error.argument, error.got, error.want)]
    return []


def _bias(spec: MatmulSpec | GroupedMatmulSpec) -> list[Reason]:
    if not spec.bias or spec.x_dtype == "bf16":
        return []
    return [Reason("bias", "bias", True, "False but for bf16 activations: it would be rounded to f16")]


def _columns(spec: MatmulSpec | GroupedMatmulSpec) -> list[Reason]:
    widths = (("n", spec.n), ("k", spec.k))
    return [Reason("shape", name, width, f"at most {MOST_COLUMNS}") for name, width in widths if width > MOST_COLUMNS]


def _float(spec: MatmulSpec | GroupedMatmulSpec) -> list[Reason]:
    if spec.weight_format == spec.x_dtype:
        return []
    return [Reason("dtype", "weight_format", spec.weight_format, f"{spec.x_dtype}, as x")]


def _codes(spec: MatmulSpec | GroupedMatmulSpec) -> list[Reason]:
    """npu_weight_quant_batchmatmul: codes of up to 8 bits, a scale of x's dtype for each group or column, whole-number
    zero points."""
    fmt, reasons = get_format(spec.weight_format), []
    if fmt.code not in ("signed", "unsigned") or fmt.zero not in ("none", "int") or fmt.super_block:
        want = "integer codes in one level of groups, without minimums"
        return [Reason("weight_format", "weight_format", fmt.id, want)]
    if spec.x_dtype not in (fmt.scale_dtype, spec.numerics.scales):
        want = f"{spec.x_dtype}, to which scales of {fmt.scale_dtype} are rounded"
        reasons.append(Reason("numerics", "numerics.scales", spec.numerics.scales, want))
    if spec.numerics.dequantized != spec.x_dtype:
        reasons.append(Reason("numerics", "numerics.dequantized", spec.numerics.dequantized, spec.x_dtype))
    if fmt.block_k % GROUP_MULTIPLE or fmt.block_k >= spec.k:
        want = f"a multiple of {GROUP_MULTIPLE} below k={spec.k}"
        reasons.append(Reason("group", "weight_format", fmt.block_k, want))
    if fmt.bits <= 4 and spec.n % INT4_COLUMNS:
        reasons.append(Reason("shape", "n", spec.n, f"a multiple of {INT4_COLUMNS}"))
    return reasons + _columns(spec)


def rope(request: Request) -> tuple[Reason, ...]:
    """npu_rotary_mul, in f32 whatever the request's dtype."""
    spec = request.spec
    assert isinstance(spec, RopeSpec)
    reasons = list(torch_rope(spec))
    if spec.num_heads >= MOST_ROTARY_HEADS:
        reasons.append(Reason("heads", "num_heads", spec.num_heads, f"fewer than {MOST_ROTARY_HEADS}"))
    if spec.rotary_dim >= MOST_ROTARY_DIM:
        reasons.append(Reason("head_dim", "rotary_dim", spec.rotary_dim, f"less than {MOST_ROTARY_DIM}"))
    if not reasons and magnitude(spec) != 1:
        want = "1: cosines and sines in [-1, 1]"
        reasons.append(Reason("scaling", "scaling.attention_factor", magnitude(spec), want))
    return tuple(reasons)


def silu_mul(request: Request) -> tuple[Reason, ...]:
    """npu_swiglu is given f32, whatever the request's dtype: nothing is refused."""
    return ()


def quantize_activation(request: Request) -> tuple[Reason, ...]:
    """npu_dynamic_quant."""
    spec = request.spec
    assert isinstance(spec, QuantizeActivationSpec)
    if spec.x_dtype not in HALVES:
        return (Reason("dtype", "x_dtype", spec.x_dtype, list(HALVES)),)
    return ()


def _permitted(numerics: Numerics, dtype: str, softmax: bool) -> list[Reason]:
    """What a matrix unit with 16-bit operands may do, and a softmax in front of one."""
    reasons = []
    if numerics.accumulate != "f32_truncating":
        reasons.append(Reason("numerics", "numerics.accumulate", numerics.accumulate, "f32_truncating"))
    if softmax and numerics.probabilities != dtype:
        reasons.append(Reason("numerics", "numerics.probabilities", numerics.probabilities, dtype))
    if softmax and numerics.exp != "approx":
        reasons.append(Reason("numerics", "numerics.exp", numerics.exp, "approx"))
    return reasons
