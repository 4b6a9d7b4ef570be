"""The vendor's operators behind checks of our own: what its documentation forbids, whether its checks see it or not.

torch_npu and CANN take, without a word, block tables of i64, heads of q and of K that differ in size, a number of heads
that is not q's, per-token scales of another length, f16 activations for the int8 product, weights, scales and groups of
another K or N, a gamma of another width. On a chip these read other memory or give other numbers. All that is looked at
lies on the host: shapes, dtypes, strides, lists. Everything that is wrong raises `ContractError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from opsocket.operators import ContractError
from opsocket_ascend.torch_npu_provider.checks import HALVES, dense, dtype_of, each, matrix, not_tiled, shape_of, three
from opsocket_ascend.torch_npu_provider.strict_attention import check_lengths as check_lengths
from opsocket_ascend.torch_npu_provider.strict_attention import fused_infer_attention as fused_infer_attention
from opsocket_ascend.torch_npu_provider.tiles import is_tiled

MOST_COLUMNS: Final = 65535
GROUP_MULTIPLE: Final = 32
CODES_PER_WORD: Final = 8
MOST_EXPERTS: Final = 128
MOST_ROTARY_HEADS, MOST_ROTARY_DIM = 1000, 896
_ONE_RESULT, _GROUPS_OF_ROWS, _ENDS = 3, 0, 0
"""Of npu_grouped_matmul: split_item, group_type, group_list_type."""


def rms_norm(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> torch.Tensor:
    """y of npu_rms_norm, over the last dimension."""
    dtype_of("x", x, (torch.float32, *HALVES))
    dtype_of("gamma", gamma, (x.dtype,))
    shape_of("gamma", gamma, x.shape[-1:])
    y: torch.Tensor = torch.ops.npu.npu_rms_norm(x, gamma, epsilon)[0]
    return y


def dynamic_quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes i8[M, K] and scale f32[M] of npu_dynamic_quant."""
    dtype_of("x", x, HALVES)
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
    """npu_quant_matmul: codes i8[M, K], weight i8[K, N], scale f32[N], per_token f32[M], bias f32[N]?, to dtype. A
    weight in tiles is not transposed, and more than one row and column."""
    import torch_npu

    dtype_of("codes", codes, (torch.int8,))
    dtype_of("weight", weight, (torch.int8,))
    rows, inner = matrix("codes", codes)
    shape_of("weight", weight, (inner, None))
    columns = weight.shape[1]
    for name, width in (("K", inner), ("N", columns)):
        if width > MOST_COLUMNS:
            raise ContractError(name, f"at most {MOST_COLUMNS}", width)
    _tiles_as_cast("weight", weight)
    for name, values, length in (("scale", scale, columns), ("per_token", per_token, rows), ("bias", bias, columns)):
        if values is not None:
            dtype_of(name, values, (torch.float32,))
            shape_of(name, values, (length,))
    if dtype not in HALVES:
        raise ContractError("dtype", "f16 or bf16", str(dtype))
    y: torch.Tensor = torch_npu.npu_quant_matmul(
        codes, weight, scale, pertoken_scale=per_token, bias=bias, output_dtype=dtype
    )
    return y


def tiled_matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """torch's product of x [M, K] by a weight [K, N] in tiles, of its dtype."""
    dtype_of("x", x, HALVES)
    dtype_of("weight", weight, (x.dtype,))
    _, inner = matrix("x", x)
    shape_of("weight", weight, (inner, None))
    if not is_tiled(weight):
        raise ContractError("weight", "a weight in FRACTAL_NZ", "one as its strides have it")
    _tiles_as_cast("weight", weight)
    return x @ weight


def _tiles_as_cast(name: str, weight: torch.Tensor) -> None:
    """Tiles have to lie as a cast left them, whatever strides a view says."""
    if not is_tiled(weight):
        return
    if not weight.is_contiguous():
        raise ContractError(name, "tiles that are not transposed", f"strides {weight.stride()}")
    if min(weight.shape) < 2:
        raise ContractError(name, "tiles of more than a row and a column", list(weight.shape))


def weight_quant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    group: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """npu_weight_quant_batchmatmul: x (scale (weight + offset)) + bias, x[M, K]; weight i8[K, N], or int4 in
    i32[K, N / 8]; scale and offset of x's dtype, [K / group, N], or [N] where group is 0; bias f32[N], for bf16.
    Weights in tiles are for graphs alone."""
    dtype_of("x", x, HALVES)
    dtype_of("weight", weight, (torch.int8, torch.int32))
    not_tiled("weight", weight)
    _, inner = matrix("x", x)
    shape_of("weight", weight, (inner, None))
    columns = weight.shape[1] * (CODES_PER_WORD if weight.dtype == torch.int32 else 1)
    if group and (group % GROUP_MULTIPLE or not group < inner or inner % group):
        raise ContractError("group", f"a multiple of {GROUP_MULTIPLE} below K={inner} that divides it", group)
    for name, values in (("scale", scale), ("offset", offset)):
        if values is not None:
            dtype_of(name, values, (x.dtype,))
            shape_of(name, values, (inner // group, columns) if group else (columns,))
    if bias is not None:
        dtype_of("x", x, (torch.bfloat16,))
        dtype_of("bias", bias, (torch.float32,))
        shape_of("bias", bias, (columns,))
    y: torch.Tensor = torch.ops.npu.npu_weight_quant_batchmatmul(
        x, weight, scale, offset, bias=bias, antiquant_group_size=group
    )
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

    Of x f16 or bf16, weights of its dtype, all or none of them in tiles; or int4 in i32 [K, N / 8] with group_scale and
    group_offset [K / group, N] of its dtype; or i8 with these [N]; bias f32[N] each, for bf16. Of x i8, weights i8 with
    scale f32[N] and per_token f32[M], to f16.
    """
    import torch_npu

    rows, inner = matrix("x", x)
    count = len(weights)
    if not 0 < count <= MOST_EXPERTS:
        raise ContractError("weights", f"1 to {MOST_EXPERTS}", count)
    dtype_of("ends", ends, (torch.int64,))
    shape_of("ends", ends, (count,))
    per_word = CODES_PER_WORD if weights[0].dtype == torch.int32 else 1
    columns = weights[0].shape[1] * per_word
    in_tiles = is_tiled(weights[0])
    coded = {torch.int32: HALVES, torch.int8: (*HALVES, torch.int8)}
    for at, weight in enumerate(weights):
        dtype_of(f"weights[{at}]", weight, (weights[0].dtype,))
        dtype_of("x", x, coded.get(weight.dtype, (weight.dtype,)))
        shape_of(f"weights[{at}]", weight, (inner, columns // per_word))
        if in_tiles and is_tiled(weight) and weight.dtype in HALVES:
            _tiles_as_cast(f"weights[{at}]", weight)
        elif in_tiles:
            raise ContractError(f"weights[{at}]", "16-bit weights that are all in FRACTAL_NZ", str(weight.dtype))
        else:
            not_tiled(f"weights[{at}]", weight)
    if columns > MOST_COLUMNS or inner > MOST_COLUMNS:
        raise ContractError("weights", f"at most {MOST_COLUMNS} rows and columns", [inner, columns])
    each("bias", bias, count, torch.float32, (columns,), x.dtype == torch.bfloat16)
    each("scale", scale, count, torch.float32, (columns,), x.dtype == torch.int8, wanted=x.dtype == torch.int8)
    if (per_token is None) == (x.dtype == torch.int8):
        raise ContractError("per_token", f"f32[{rows}] for int8 rows, and for these alone", per_token is not None)
    if per_token is not None:
        dtype_of("per_token", per_token, (torch.float32,))
        shape_of("per_token", per_token, (rows,))
    weight_only = x.dtype in HALVES and weights[0].dtype in coded
    by_group = (group_scale[0].shape[0] if group_scale else None, columns)
    shape = by_group if per_word > 1 else (columns,)
    each("group_scale", group_scale, count, x.dtype, shape, weight_only, wanted=weight_only)
    each("group_offset", group_offset, count, x.dtype, shape, weight_only, wanted=weight_only)
    if per_word > 1 and by_group[0] is not None and inner % by_group[0]:
        raise ContractError("group_scale", f"groups that divide K={inner}", by_group[0])
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
    _, width = matrix("joined", joined)
    dtype_of("joined", joined, (torch.float32,))
    dense("joined", joined)
    if width % 2:
        raise ContractError("joined", "rows of two halves", width)
    y: torch.Tensor = torch.ops.npu.npu_swiglu(joined, -1)
    return y


def rotary_mul(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """npu_rotary_mul of dense f32 x [T, N, D] by cos and sin f32 [T, 1, D], each of a pair's channels with its own."""
    tokens, heads, dim = three("x", x)
    dense("x", x)
    if heads >= MOST_ROTARY_HEADS or dim >= MOST_ROTARY_DIM or dim % 2:
        want = f"fewer than {MOST_ROTARY_HEADS} heads of an even size below {MOST_ROTARY_DIM}"
        raise ContractError("x", want, f"{heads} of {dim}")
    for name, values in (("x", x), ("cos", cos), ("sin", sin)):
        dtype_of(name, values, (torch.float32,))
    for name, values in (("cos", cos), ("sin", sin)):
        shape_of(name, values, (tokens, 1, dim))
    mode = "interleave" if interleaved else "half"
    y: torch.Tensor = torch.ops.npu.npu_rotary_mul(x.unsqueeze(0), cos.unsqueeze(0), sin.unsqueeze(0), mode)
    return y.squeeze(0)


def scatter_cache(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """npu_scatter_pa_kv_cache: rows [T, Hkv, D] to slots i64[T] of caches [blocks, size, Hkv, D]. The slots themselves
    are core's to check: distinct, and within the cache."""
    shape_of("value", value, (*key.shape[:2], None))
    dtype_of("slots", slots, (torch.int32, torch.int64))
    shape_of("slots", slots, key.shape[:1])
    for name, rows, cache in (("key", key, key_cache), ("value", value, value_cache)):
        dense(name, rows)
        dense(f"{name}_cache", cache)
        dtype_of(name, rows, (key.dtype,))
        dtype_of(f"{name}_cache", cache, (key.dtype,))
        shape_of(f"{name}_cache", cache, (None, None, *rows.shape[1:]))
    if key_cache.shape[:2] != value_cache.shape[:2]:
        raise ContractError("value_cache", f"blocks {list(key_cache.shape[:2])}", list(value_cache.shape[:2]))
    torch.ops.npu.npu_scatter_pa_kv_cache(key, value, key_cache, value_cache, slots, cache_mode="Norm")
