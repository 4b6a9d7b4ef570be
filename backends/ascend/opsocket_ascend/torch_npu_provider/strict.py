"""The vendor's operators behind checks of our own: what its documentation forbids, whether its checks see it or not.

torch_npu and CANN take, without a word, block tables of i64, heads of q and of K that differ in size, a number of heads
that is not q's, per-token scales of another length, f16 activations for the int8 product, weights, scales and groups of
another K or N, a gamma of another width. On a chip these read other memory or give other numbers. All that is looked at
lies on the host: shapes, dtypes, strides, lists. Everything that is wrong raises `ContractError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch

from opsocket.operators import ContractError

NO_MASK, CAUSAL, BAND = 0, 3, 4
"""Values of sparse_mode: none, and those with the compressed mask, bottom-right causal and a band along it."""

PER_TOKEN_HEAD_PAGED: Final = 5
"""Of key_antiquant_mode: a f32 scale for each token and head, in pages [blocks, heads, tokens]."""

MASK_SIDE: Final = 2048
LATENT_DIM, ROPE_DIM, MOST_LATENT_QUERIES = 512, 64, 16
MOST_LATENT_GROUP: Final = 128
LATENT_HEADS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_SINK_DIM: Final = 128
BLOCK_MULTIPLE, LARGEST_BLOCK = 128, 512
MOST_GROUP, MOST_HEADS, MOST_HEAD_DIM, MOST_ROW = 64, 256, 512, 65535
HEAD_DIM_MULTIPLE: Final = 16
INT8_HEAD_DIM_MULTIPLE: Final = 32
MOST_COLUMNS: Final = 65535
GROUP_MULTIPLE: Final = 32
CODES_PER_WORD: Final = 8
MOST_EXPERTS: Final = 128
MOST_ROTARY_HEADS, MOST_ROTARY_DIM = 1000, 896
_ONE_RESULT, _GROUPS_OF_ROWS, _ENDS = 3, 0, 0
"""Of npu_grouped_matmul: split_item, group_type, group_list_type."""

_HALVES: Final = (torch.float16, torch.bfloat16)
_HIGH_PRECISION: Final = 0
"""Of inner_precise; queries that see no key, which it leaves undefined, are not given."""

_UNLIMITED: Final = 2147483647


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> torch.Tensor:
    """y of npu_rms_norm, over the last dimension."""
    _dtype("x", x, (torch.float32, *_HALVES))
    _dtype("gamma", gamma, (x.dtype,))
    _shape("gamma", gamma, x.shape[-1:])
    y: torch.Tensor = torch.ops.npu.npu_rms_norm(x, gamma, epsilon)[0]
    return y


def dynamic_quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes i8[M, K] and scale f32[M] of npu_dynamic_quant."""
    _dtype("x", x, _HALVES)
    codes, scale = torch.ops.npu.npu_dynamic_quant(x)
    return codes, scale


def quant_matmul(
    codes: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    per_token: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """npu_quant_matmul: codes i8[M, K], weight i8[K, N], scale f32[N], per_token f32[M], bias f32[N]?, to dtype."""
    import torch_npu

    _dtype("codes", codes, (torch.int8,))
    _dtype("weight", weight, (torch.int8,))
    rows, inner = _matrix("codes", codes)
    _shape("weight", weight, (inner, None))
    columns = weight.shape[1]
    for name, width in (("K", inner), ("N", columns)):
        if width > MOST_COLUMNS:
            raise ContractError(name, f"at most {MOST_COLUMNS}", width)
    for name, values, length in (("scale", scale, columns), ("per_token", per_token, rows), ("bias", bias, columns)):
        if values is not None:
            _dtype(name, values, (torch.float32,))
            _shape(name, values, (length,))
    if dtype not in _HALVES:
        raise ContractError("dtype", "f16 or bf16", str(dtype))
    y: torch.Tensor = torch_npu.npu_quant_matmul(
        codes, weight, scale, pertoken_scale=per_token, bias=bias, output_dtype=dtype
    )
    return y


def weight_quant_matmul(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, group: int
) -> torch.Tensor:
    """npu_weight_quant_batchmatmul: x (scale (weight + offset)), x[M, K]; weight i8[K, N], or int4 in i32[K, N / 8];
    scale and offset of x's dtype, [K / group, N], or [N] where group is 0."""
    _dtype("x", x, _HALVES)
    _dtype("weight", weight, (torch.int8, torch.int32))
    _, inner = _matrix("x", x)
    _shape("weight", weight, (inner, None))
    columns = weight.shape[1] * (CODES_PER_WORD if weight.dtype == torch.int32 else 1)
    if group and (group % GROUP_MULTIPLE or not group < inner or inner % group):
        raise ContractError("group", f"a multiple of {GROUP_MULTIPLE} below K={inner} that divides it", group)
    for name, values in (("scale", scale), ("offset", offset)):
        if values is not None:
            _dtype(name, values, (x.dtype,))
            _shape(name, values, (inner // group, columns) if group else (columns,))
    y: torch.Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(x, weight, scale, offset, antiquant_group_size=group)
    return y


def grouped_matmul(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    ends: torch.Tensor,
    dtype: torch.dtype,
    *,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    per_token: torch.Tensor | None = None,
    group_scale: Sequence[torch.Tensor] | None = None,
    group_offset: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """npu_grouped_matmul of one x [M, K], E weights [K, N] and one result [M, N]; ends i64[E]: rows up to the end of
    each expert's, the last of them M.

    Of x f16 or bf16, weights of its dtype (bias f32[N] each, for bf16), or int4 in i32 [K, N / 8] with group_scale and
    group_offset [K / group, N] of its dtype. Of x i8, weights i8 with scale f32[N] and per_token f32[M], to f16.
    """
    import torch_npu

    rows, inner = _matrix("x", x)
    count = len(weights)
    if not 0 < count <= MOST_EXPERTS:
        raise ContractError("weights", f"1 to {MOST_EXPERTS}", count)
    _dtype("ends", ends, (torch.int64,))
    _shape("ends", ends, (count,))
    per_word = CODES_PER_WORD if weights[0].dtype == torch.int32 else 1
    columns = weights[0].shape[1] * per_word
    coded = {torch.int32: _HALVES, torch.int8: (torch.int8,)}
    for at, weight in enumerate(weights):
        _dtype(f"weights[{at}]", weight, (weights[0].dtype,))
        _dtype("x", x, coded.get(weight.dtype, (weight.dtype,)))
        _shape(f"weights[{at}]", weight, (inner, columns // per_word))
    if columns > MOST_COLUMNS or inner > MOST_COLUMNS:
        raise ContractError("weights", f"at most {MOST_COLUMNS} rows and columns", [inner, columns])
    _each("bias", bias, count, torch.float32, (columns,), x.dtype == torch.bfloat16 and per_word == 1)
    _each("scale", scale, count, torch.float32, (columns,), x.dtype == torch.int8, wanted=x.dtype == torch.int8)
    if (per_token is None) == (x.dtype == torch.int8):
        raise ContractError("per_token", f"f32[{rows}] for int8 rows, and for these alone", per_token is not None)
    if per_token is not None:
        _dtype("per_token", per_token, (torch.float32,))
        _shape("per_token", per_token, (rows,))
    grouped = per_word > 1
    shape = (group_scale[0].shape[0] if group_scale else None, columns)
    _each("group_scale", group_scale, count, x.dtype, shape, grouped, wanted=grouped)
    _each("group_offset", group_offset, count, x.dtype, shape, grouped, wanted=grouped)
    if shape[0] is not None and inner % shape[0]:
        raise ContractError("group_scale", f"groups that divide K={inner}", shape[0])
    if dtype != (torch.float16 if x.dtype == torch.int8 else x.dtype):
        raise ContractError("dtype", "x's, or f16 of int8", str(dtype))
    y: torch.Tensor = torch_npu.npu_grouped_matmul(
        [x],
        list(weights),
        bias=None if bias is None else list(bias),
        scale=None if scale is None else list(scale),
        per_token_scale=None if per_token is None else [per_token],
        antiquant_scale=None if group_scale is None else list(group_scale),
        antiquant_offset=None if group_offset is None else list(group_offset),
        group_list=ends,
        split_item=_ONE_RESULT,
        group_type=_GROUPS_OF_ROWS,
        group_list_type=_ENDS,
        output_dtype=dtype,
    )[0]
    return y


def swiglu(joined: torch.Tensor) -> torch.Tensor:
    """silu of the first half of each row times the second: npu_swiglu of dense f32 [T, 2 N]."""
    _, width = _matrix("joined", joined)
    _dtype("joined", joined, (torch.float32,))
    _dense("joined", joined)
    if width % 2:
        raise ContractError("joined", "rows of two halves", width)
    y: torch.Tensor = torch.ops.npu.npu_swiglu(joined, -1)
    return y


def rotary_mul(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """npu_rotary_mul of dense f32 x [T, N, D] by cos and sin f32 [T, 1, D], each of a pair's channels with its own."""
    tokens, heads, dim = _three("x", x)
    _dense("x", x)
    if heads >= MOST_ROTARY_HEADS or dim >= MOST_ROTARY_DIM or dim % 2:
        want = f"fewer than {MOST_ROTARY_HEADS} heads of an even size below {MOST_ROTARY_DIM}"
        raise ContractError("x", want, f"{heads} of {dim}")
    for name, values in (("x", x), ("cos", cos), ("sin", sin)):
        _dtype(name, values, (torch.float32,))
    for name, values in (("cos", cos), ("sin", sin)):
        _shape(name, values, (tokens, 1, dim))
    mode = "interleave" if interleaved else "half"
    y: torch.Tensor = torch.ops.npu.npu_rotary_mul(x.unsqueeze(0), cos.unsqueeze(0), sin.unsqueeze(0), mode)
    return y.squeeze(0)


def scatter_cache(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """npu_scatter_pa_kv_cache: rows [T, Hkv, D] to slots i64[T] of caches [blocks, size, Hkv, D]. The slots themselves
    are core's to check: distinct, and within the cache."""
    _shape("value", value, (*key.shape[:2], None))
    _dtype("slots", slots, (torch.int32, torch.int64))
    _shape("slots", slots, key.shape[:1])
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        _dense(name, rows)
        _dense(f"{name}_cache", cache)
        _dtype(name, rows, (key.dtype,))
        _dtype(f"{name}_cache", cache, (key.dtype,))
        _shape(f"{name}_cache", cache, (None, None, *rows.shape[1:]))
    if key_cache.shape[:2] != value_cache.shape[:2]:
        raise ContractError("value_cache", f"blocks {list(key_cache.shape[:2])}", list(value_cache.shape[:2]))
    torch.ops.npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode="Norm")


def fused_infer_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    q_ends: Sequence[int],
    kv_lens: Sequence[int],
    block_table: torch.Tensor,
    mask: torch.Tensor | None,
    want_lse: bool,
    window: int | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    q_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """npu_fused_infer_attention_score in layout TND over pages: out [T, Hq, D], and LSE f32[T, Hq, 1] where wanted.

    q [T, Hq, D]. keys, values [blocks, size, Hkv, D] of q's dtype, or i8 with scales f32[blocks, Hkv, size]. q_ends:
    rows up to the end of each sequence; kv_lens: its keys, of which its queries, under a mask, are the last.
    block_table i32[B, W]. mask: the compressed causal one, None where every query sees every key of its sequence.
    window: keys before its own that a query sees. Version 2 of the operator, where there are q_rope [T, Hq, 64] with
    key_rope [blocks, size, 1, 64], over latent keys that are the values, or sinks bf16[Hq].
    """
    is_latent = q_rope is not None or key_rope is not None
    _check_queries(q, num_heads, num_kv_heads, MOST_LATENT_GROUP if is_latent else MOST_GROUP)
    _check_pages(q, keys, values, num_kv_heads)
    size = keys.shape[1]
    _check_lengths(len(q), q_ends, kv_lens, mask is not None)
    longest = max(stop - start for start, stop in pairwise((0, *q_ends)))
    _dtype("block_table", block_table, (torch.int32,))
    _shape("block_table", block_table, (len(kv_lens), None))
    _dense("block_table", block_table)
    if block_table.shape[1] * size < max(kv_lens):
        raise ContractError("block_table", f"columns for {max(kv_lens)} keys", block_table.shape[1])
    if mask is not None:
        _dtype("mask", mask, (torch.int8, torch.uint8, torch.bool))
        _shape("mask", mask, (MASK_SIDE, MASK_SIDE))
        if longest == 1:
            raise ContractError("mask", "None where every sequence has one query: it would not be looked at", "one")
    if window is not None and window < 0:
        raise ContractError("window", "at least 0", window)
    _check_scales(keys, key_scale, value_scale, num_kv_heads, longest)
    if is_latent:
        _check_latent(q, keys, values, q_rope, key_rope)
        if longest > (1 if mask is None else MOST_LATENT_QUERIES):
            want = f"at most {MOST_LATENT_QUERIES} queries of a sequence, and one without a mask, over latent keys"
            raise ContractError("q_ends", want, longest)
        if window is not None:
            raise ContractError("window", "None over latent keys", window)
    if sinks is not None:
        _dtype("sinks", sinks, (torch.bfloat16,))
        _dtype("q", q, (torch.bfloat16,))
        _shape("sinks", sinks, (num_heads,))
        if q.shape[2] > MOST_SINK_DIM:
            raise ContractError("q", f"heads of at most {MOST_SINK_DIM} with sinks", q.shape[2])
    sparse = NO_MASK if mask is None else CAUSAL if window is None else BAND
    common = {
        "num_key_value_heads": num_kv_heads,
        "input_layout": "TND",
        "block_table": block_table,
        "block_size": size,
        "atten_mask": mask,
        "sparse_mode": sparse,
        "pre_tokens": window if sparse == BAND else _UNLIMITED,
        "next_tokens": 0 if sparse == BAND else _UNLIMITED,
        "inner_precise": _HIGH_PRECISION,
    }
    flat = (q, keys.view(len(keys), size, -1), values.view(len(values), size, -1))
    if is_latent or sinks is not None:
        out, lse = torch.ops.npu.npu_fused_infer_attention_score_v2(
            *flat,
            query_rope=q_rope,
            key_rope=None if key_rope is None else key_rope.view(len(key_rope), size, -1),
            num_query_heads=num_heads,
            softmax_scale=scale,
            actual_seq_qlen=list(q_ends),
            actual_seq_kvlen=list(kv_lens),
            learnable_sink=sinks,
            return_softmax_lse=want_lse,
            **common,
        )
        return out, lse
    quantized = keys.dtype == torch.int8
    out, lse = torch.ops.npu.npu_fused_infer_attention_score(
        *flat,
        num_heads=num_heads,
        scale=scale,
        actual_seq_lengths=list(q_ends),
        actual_seq_lengths_kv=list(kv_lens),
        softmax_lse_flag=want_lse,
        key_antiquant_scale=key_scale,
        value_antiquant_scale=value_scale,
        key_antiquant_mode=PER_TOKEN_HEAD_PAGED if quantized else 0,
        value_antiquant_mode=PER_TOKEN_HEAD_PAGED if quantized else 0,
        **common,
    )
    return out, lse


def _check_queries(q: torch.Tensor, num_heads: int, num_kv_heads: int, most_group: int) -> None:
    _, heads, dim = _three("q", q)
    _dense("q", q)
    _dtype("q", q, _HALVES)
    if heads != num_heads:
        raise ContractError("num_heads", f"q's {heads}", num_heads)
    _check_heads(num_heads, num_kv_heads, dim, most_group)


def _check_pages(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_kv_heads: int) -> None:
    _dtype("keys", keys, (q.dtype, torch.int8))
    _dtype("values", values, (keys.dtype,))
    _shape("keys", keys, (None, None, num_kv_heads, q.shape[2]))
    _shape("values", values, keys.shape)
    for name, pages in (("keys", keys), ("values", values)):
        _dense(name, pages)
    size = keys.shape[1]
    if size % BLOCK_MULTIPLE or size > LARGEST_BLOCK:
        raise ContractError("keys", f"blocks of a multiple of {BLOCK_MULTIPLE} tokens, at most {LARGEST_BLOCK}", size)


def _check_scales(
    keys: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    num_kv_heads: int,
    longest: int,
) -> None:
    quantized = keys.dtype == torch.int8
    for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
        if (scale is not None) != quantized:
            raise ContractError(name, "scales for int8 pages" if quantized else "None", scale is not None)
        if scale is not None:
            _dtype(name, scale, (torch.float32,))
            _shape(name, scale, (keys.shape[0], num_kv_heads, keys.shape[1]))
    if quantized and longest > 1:
        raise ContractError("q_ends", "one query of each sequence, over int8 pages", longest)


def _check_latent(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    q_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
) -> None:
    if q_rope is None or key_rope is None:
        raise ContractError("q_rope", "given together with key_rope", (q_rope is not None, key_rope is not None))
    if keys is not values or keys.dtype != q.dtype:
        raise ContractError("values", f"the keys, of {q.dtype}, where there are rotary parts", "others")
    tokens, heads, dim = q.shape
    if dim != LATENT_DIM or heads not in LATENT_HEADS:
        raise ContractError("q", f"{list(LATENT_HEADS)} heads of {LATENT_DIM}", f"{heads} of {dim}")
    _dtype("q_rope", q_rope, (q.dtype,))
    _dtype("key_rope", key_rope, (q.dtype,))
    _shape("q_rope", q_rope, (tokens, heads, ROPE_DIM))
    _shape("key_rope", key_rope, (*keys.shape[:2], 1, ROPE_DIM))
    _dense("q_rope", q_rope)
    _dense("key_rope", key_rope)


def _check_heads(num_heads: int, num_kv_heads: int, dim: int, most_group: int) -> None:
    if num_kv_heads < 1 or num_heads % num_kv_heads or num_heads // num_kv_heads > most_group:
        raise ContractError("num_kv_heads", f"a divisor of {num_heads}, of at least 1/{most_group}", num_kv_heads)
    if num_heads > MOST_HEADS:
        raise ContractError("num_heads", f"at most {MOST_HEADS}", num_heads)
    if dim % HEAD_DIM_MULTIPLE or dim > MOST_HEAD_DIM:
        raise ContractError("q", f"heads of a multiple of {HEAD_DIM_MULTIPLE}, at most {MOST_HEAD_DIM}", dim)
    if num_kv_heads * dim > MOST_ROW:
        raise ContractError("keys", f"rows of at most {MOST_ROW} elements", num_kv_heads * dim)


def _check_lengths(tokens: int, q_ends: Sequence[int], kv_lens: Sequence[int], is_masked: bool) -> None:
    if not q_ends or any(stop < start for start, stop in pairwise((0, *q_ends))) or q_ends[-1] != tokens:
        raise ContractError("q_ends", f"ends of sequences, never falling, the last at {tokens}", list(q_ends))
    if len(kv_lens) != len(q_ends) or min(kv_lens) < 1:
        raise ContractError("kv_lens", f"{len(q_ends)} lengths of at least 1", list(kv_lens))
    q_lens = [stop - start for start, stop in pairwise((0, *q_ends))]
    if is_masked and any(keys < queries for keys, queries in zip(kv_lens, q_lens, strict=True)):
        raise ContractError("kv_lens", f"at least the queries under a mask, {q_lens}", list(kv_lens))


def _each(
    name: str,
    values: Sequence[torch.Tensor] | None,
    count: int,
    dtype: torch.dtype,
    shape: Sequence[int | None],
    allowed: bool,
    wanted: bool = False,
) -> None:
    """One array for each weight, where such weights take them."""
    if values is None:
        if wanted:
            raise ContractError(name, f"{count} arrays", None)
        return
    if not allowed:
        raise ContractError(name, "None for these weights", f"{len(values)} arrays")
    if len(values) != count:
        raise ContractError(name, f"{count} arrays", len(values))
    for at, array in enumerate(values):
        _dtype(f"{name}[{at}]", array, (dtype,))
        _shape(f"{name}[{at}]", array, shape)


def _dtype(name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        raise ContractError(name, f"one of {[str(dtype) for dtype in allowed]}", str(tensor.dtype))


def _shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    fits = len(shape) == tensor.dim() and all(w in (None, h) for w, h in zip(shape, tensor.shape, strict=True))
    if not fits:
        raise ContractError(name, f"shape {list(shape)}", list(tensor.shape))


def _matrix(name: str, tensor: torch.Tensor) -> tuple[int, int]:
    _shape(name, tensor, (None, None))
    return tensor.shape[0], tensor.shape[1]


def _three(name: str, tensor: torch.Tensor) -> tuple[int, int, int]:
    _shape(name, tensor, (None, None, None))
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def _dense(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ContractError(name, "a dense array", f"strides {tensor.stride()}")
