"""The vendor's fused operators for inference. What its documentation forbids and no check of its own refuses is an
error here, so that no answer hides it."""

from __future__ import annotations

from typing import Any

import numpy as np

from opsocket_ascend.emulator.answers.elementwise import silu
from opsocket_ascend.emulator.answers.movement import numbers
from opsocket_ascend.emulator.calls import answers
from opsocket_ascend.emulator.handles import EmulationError, Tensor
from opsocket_ascend.emulator.tiles import FRACTAL_NZ

_Integers = tuple[int, ...]


def must(condition: bool, what: str) -> None:
    """`EmulationError` about what is not so."""
    if not condition:
        raise EmulationError(what)


def absent(**arguments: object) -> None:
    """`EmulationError` that names the arguments which are given."""
    given = [name for name, value in arguments.items() if value is not None and value != ()]
    must(not given, f"not emulated: {', '.join(given)}")


@answers("aclnnRmsNorm", "x gamma epsilon:double y rstd")
def _rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    must(gamma.dtype == x.dtype, f"gamma {gamma} of another dtype than x {x}")
    must(gamma.shape == x.shape[-len(gamma.shape) :], f"gamma {gamma} for x {x}")
    values = x.value()
    axes = tuple(range(len(x.shape) - len(gamma.shape), len(x.shape)))
    scale = 1 / np.sqrt((values**2).mean(axes, keepdims=True) + epsilon)
    y.write(values * scale * gamma.value())
    rstd.write(scale)


@answers("aclnnDynamicQuantV2", "x smooth groups dst_type:int y scale offset")
def _dynamic_quant(
    x: Tensor, smooth: Tensor | None, groups: Tensor | None, dst_type: int, y: Tensor, scale: Tensor, offset: None
) -> None:
    absent(smooth=smooth, groups=groups, offset=offset)
    must(x.dtype.name in ("f16", "bf16"), f"x {x}: only f16 and bf16 are quantized")
    must(y.dtype.name == "i8", f"codes {y}: only int8 is emulated")
    values = x.value().astype(np.float32)
    step = np.abs(values).max(-1, keepdims=True) / np.float32(127)
    # A row of zeros gives 0 / 0 on the way, and codes of 0.
    codes = np.divide(values, step, out=np.zeros_like(values), where=step != 0)
    y.write(np.rint(codes))
    scale.write(step[..., 0])


_QUANT_MATMUL = (
    "x1 x2 x1_scale x2_scale y_scale x1_offset x2_offset y_offset bias transpose1:bool transpose2:bool group:int out"
)


def _quant_matmul(
    x1: Tensor,
    x2: Tensor,
    x1_scale: Tensor | None,
    x2_scale: Tensor,
    y_scale: Tensor | None,
    x1_offset: Tensor | None,
    x2_offset: Tensor | None,
    y_offset: Tensor | None,
    bias: Tensor | None,
    transpose1: bool,
    transpose2: bool,
    group: int,
    out: Tensor,
) -> None:
    for name, tensor in (("y_scale", y_scale), ("x1_offset", x1_offset), ("y_offset", y_offset)):
        must(tensor is None or 0 in tensor.shape, f"not emulated: {name}")
    absent(x2_offset=x2_offset)
    must(not (transpose1 or transpose2 or group), "transposed or grouped operands: not emulated")
    must((x1.dtype.name, x2.dtype.name) == ("i8", "i8"), f"{x1} and {x2}: only int8 is emulated")
    (rows, inner), (other, columns) = x1.shape, x2.shape
    must(inner == other, f"K of {x1} and {x2}")
    must(x2_scale.shape in ((1,), (columns,)), f"scale {x2_scale} for {columns} columns")
    product = x1.value().astype(np.float64) @ x2.weight().astype(np.float64)  # exact: K 127^2 < 2^53
    product *= x2_scale.value()
    if x1_scale is not None:
        must(x1_scale.shape == (rows,), f"per-token scale {x1_scale} for {rows} rows")
        product *= x1_scale.value()[:, None]
    if bias is not None:
        must(bias.shape == (columns,), f"bias {bias} for {columns} columns")
        product += bias.value()
    out.write(product)


@answers("aclnnQuantMatmulV5", _QUANT_MATMUL)
def _plain_quant_matmul(x1: Tensor, x2: Tensor, *others: Any) -> None:
    must(x2.format != FRACTAL_NZ, f"{x2}: no tiles")
    _quant_matmul(x1, x2, *others)


@answers("aclnnQuantMatmulWeightNz", _QUANT_MATMUL)
def _tiled_quant_matmul(x1: Tensor, x2: Tensor, *others: Any) -> None:
    must(x2.format == FRACTAL_NZ and x2.is_dense, f"{x2}: tiles that are not transposed are wanted")
    _quant_matmul(x1, x2, *others)


@answers(
    "aclnnWeightQuantBatchMatmulV2",
    "x weight scale offset quant_scale quant_offset bias group:int out",
)
def _weight_quant_matmul(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    quant_scale: Tensor | None,
    quant_offset: Tensor | None,
    bias: Tensor | None,
    group: int,
    out: Tensor,
) -> None:
    absent(quant_scale=quant_scale, quant_offset=quant_offset)
    must(x.dtype.name in ("f16", "bf16") and scale.dtype == x.dtype, f"x {x} with scale {scale}")
    codes = unpacked_int4(weight) if weight.dtype.name == "i32" else weight.value().astype(np.float64)
    inner, columns = codes.shape
    must(x.shape[-1] == inner, f"K of {x} and weight {weight}")
    groups = -(-inner // group) if group else 1
    must(group == 0 or (group % 32 == 0 and 32 <= group < inner), f"a group of {group} for K={inner}")
    shapes = ((groups, columns),) if group else ((columns,), (1, columns), (1,), (1, 1))
    must(scale.shape in shapes, f"scale {scale}: one of the shapes {shapes}")
    must(offset is None or (offset.shape == scale.shape and offset.dtype == scale.dtype), f"offset {offset}")
    of_row = np.arange(inner) // (group or inner)
    steps = scale.value().reshape(-1, scale.shape[-1])[of_row]
    if offset is not None:
        codes = codes + offset.value().reshape(-1, scale.shape[-1])[of_row]
    product = x.value() @ (codes * steps)
    if bias is not None:
        must(x.dtype.name == "bf16" and bias.dtype.name == "f32" and bias.shape == (columns,), f"bias {bias}")
        product = product + bias.value()
    out.write(product)


def unpacked_int4(weight: Tensor) -> np.ndarray:
    """f64 [K, N] of int32 [K, N / 8]: eight codes in a word, the lowest bits first."""
    words = weight.value().view(np.uint32)
    nibbles = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 0xF
    return (nibbles.astype(np.int8).reshape(words.shape[0], -1).astype(np.float64) + 8) % 16 - 8


_GROUPED = (
    "x weight bias scale offset group_scale group_offset per_token ends act_in act_scale act_offset split:int "
    "group_type:int list_type:int act:int tuning out act_out act_out_scale"
)
_TILED_GROUPED = _GROUPED.replace("tuning", "tuning quant_group:int")


@answers("aclnnGroupedMatmulV5", _GROUPED)
def _plain_grouped_matmul(*arguments: object) -> None:
    a = _named(_GROUPED, arguments)
    for weight in a["weight"]:
        must(weight.format != FRACTAL_NZ, f"{weight}: no tiles")
    _grouped_matmul(a)


@answers("aclnnGroupedMatmulWeightNz", _TILED_GROUPED)
def _tiled_grouped_matmul(*arguments: object) -> None:
    a = _named(_TILED_GROUPED, arguments)
    must(a["quant_group"] == 0, "groups of int4 in tiles: not emulated")
    for weight in a["weight"]:
        must(weight.format == FRACTAL_NZ and weight.is_dense, f"{weight}: tiles that are not transposed are wanted")
        must(weight.dtype.name in ("f16", "bf16"), f"{weight}: several weights in tiles are of 16 bits")
    _grouped_matmul(a)


def _named(words: str, arguments: tuple[object, ...]) -> dict[str, Any]:
    return dict(zip((word.partition(":")[0] for word in words.split()), arguments, strict=True))


def _grouped_matmul(a: dict[str, Any]) -> None:
    absent(**{name: value for name, value in a.items() if name in ("offset", "tuning") or name.startswith("act_")})
    attributes = (a["split"], a["group_type"], a["list_type"], a["act"])
    must(attributes == (3, 0, 0, 0), f"split, group type, list type, activation {attributes}: not emulated")
    must(len(a["x"]) == len(a["out"]) == 1, "several x or results: not emulated")
    x, out, weights, ends = a["x"][0], a["out"][0], a["weight"], a["ends"]
    bounds = ends.value()
    must(len(bounds) == len(weights) <= 128, f"ends {ends} of {len(weights)} weights")
    must(bool(np.all(np.diff([0, *bounds]) >= 0)) and bounds[-1] == x.shape[0], f"ends {bounds} of {x}")
    values, start, y = x.value().astype(np.float64), 0, np.zeros(out.shape)
    for at, (weight, end) in enumerate(zip(weights, bounds, strict=True)):
        product = values[start:end] @ _expert(a, at, weight, x)
        if a["scale"] is not None:
            scale, per_token = a["scale"][at], a["per_token"][0]
            must(out.dtype.name == "f16" and scale.dtype.name == per_token.dtype.name == "f32", f"{scale} to {out}")
            must(scale.shape == (out.shape[1],) and per_token.shape == (x.shape[0],), f"{scale}, {per_token}")
            product *= scale.value() * per_token.value()[start:end, None]
        if a["bias"] is not None:
            bias = a["bias"][at]
            must(x.dtype.name == "bf16" and bias.dtype.name == "f32" and bias.shape == (out.shape[1],), f"bias {bias}")
            product += bias.value()
        y[start:end], start = product, end
    out.write(y)


def _expert(a: dict[str, Any], at: int, weight: Tensor, x: Tensor) -> np.ndarray:
    """f64 [K, N]."""
    if weight.dtype == x.dtype:
        must(weight.shape[0] == x.shape[1], f"weight {weight} for {x}")
        must((x.dtype.name == "i8") == (a["scale"] is not None), f"scales of {x}")
        return weight.weight().astype(np.float64)
    scale, offset = a["group_scale"][at], a["group_offset"][at]
    must(scale.dtype == offset.dtype == x.dtype and scale.shape == offset.shape, f"{scale}, {offset} for {x}")
    if weight.dtype.name == "i8":
        must(weight.shape == (x.shape[1], *scale.shape), f"{weight} by columns of {scale} for {x}")
        return (weight.value() + offset.value()) * scale.value()
    must(weight.dtype.name == "i32", f"weight {weight} for {x}")
    codes = unpacked_int4(weight)
    must(codes.shape[0] == x.shape[1] and codes.shape[0] % scale.shape[0] == 0, f"{weight} in groups of {scale}")
    of_row = np.arange(codes.shape[0]) // (codes.shape[0] // scale.shape[0])
    return (codes + offset.value()[of_row]) * scale.value()[of_row]


@answers("aclnnSwiGlu", "x dim:int out")
def _swiglu(x: Tensor, dim: int, out: Tensor) -> None:
    gate, up = np.split(x.value(), 2, dim)
    out.write(silu(gate) * up)


@answers("aclnnRotaryPositionEmbeddingV2", "x cos sin mode:int rotate out")
def _rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: int, rotate: Tensor | None, out: Tensor) -> None:
    absent(rotate=rotate)
    half, interleave = 0, 1
    must(mode in (half, interleave), f"mode {mode}: not emulated")
    must(len(x.shape) == 4 and cos.shape == sin.shape and cos.dtype == sin.dtype == x.dtype, f"{x} by {cos}, {sin}")
    must(x.shape[-1] % 2 == 0 and x.shape[-1] < 896 and cos.shape[-1] == x.shape[-1], f"{x} by {cos}")
    must(x.shape[0] * x.shape[2] < 1000 and cos.shape[:3] == (1, x.shape[1], 1), f"{x} by {cos}: only 1S1D is emulated")
    for part in (cos, sin):
        must(bool(np.all(np.abs(part.value()) <= 1)), f"{part} beyond [-1, 1]")
    values = x.value()
    turned = np.empty_like(values)
    if mode == half:
        first, second = np.split(values, 2, -1)
        turned = np.concatenate([-second, first], -1)
    else:
        turned[..., ::2], turned[..., 1::2] = -values[..., 1::2], values[..., ::2]
    out.write(values * cos.value() + turned * sin.value())


@answers(
    "aclnnScatterPaKvCache",
    "key key_cache slots value value_cache lens offsets seq_lens mode:text scatter:text strides starts",
)
def _scatter_pa_kv_cache(
    key: Tensor,
    key_cache: Tensor,
    slots: Tensor,
    value: Tensor | None,
    value_cache: Tensor | None,
    lens: Tensor | None,
    offsets: Tensor | None,
    seq_lens: Tensor | None,
    mode: str | None,
    scatter: str | None,
    strides: _Integers,
    starts: _Integers,
) -> None:
    absent(lens=lens, offsets=offsets, seq_lens=seq_lens)
    must(mode == "Norm", f"cache_mode {mode!r}: only 'Norm' is emulated")
    for rows, cache in ((key, key_cache), (value, value_cache)):
        if rows is None or cache is None:
            raise EmulationError("keys without values: not emulated")
        must(rows.dtype == cache.dtype == key.dtype, f"{rows} into {cache}")
        must(rows.is_dense and cache.is_dense, f"{rows} into {cache}: only dense arrays are served")
        must(rows.shape[:2] == key.shape[:2] and rows.shape[1:] == cache.shape[2:], f"{rows} into {cache}")
        blocks, size = cache.shape[:2]
        at = numbers(slots, blocks * size)
        must(at.shape == (rows.shape[0],) and len(np.unique(at)) == len(at), f"slots {slots} for {rows}")
        cache.raw().reshape(blocks * size, *cache.shape[2:])[at] = rows.raw()
