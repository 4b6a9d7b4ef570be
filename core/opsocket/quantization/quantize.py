"""Round-to-nearest packers: put any weight into any format, and back.

For models in a format that nobody published them in, and for tests. A scale is rounded upwards to the type that
stores it, so that no code is clipped and every weight comes back within half a step of its group. No calibration:
a GPTQ or AWQ file made here has the layout of those methods, not their accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError
from opsocket.quantization import quantize_ggml
from opsocket.quantization.bfloat16 import bf16_to_f32, f32_to_bf16
from opsocket.quantization.float8 import F8E4M3FN_MAX, f32_to_f8e4m3fn
from opsocket.quantization.formats import QuantFormat
from opsocket.quantization.rounding import divide, f16_at_least

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 20  # weights packed at a time
_AWQ_COLUMN_OF_NIBBLE = [0, 2, 4, 6, 1, 3, 5, 7]


def quantize(format: QuantFormat, weight: Float32) -> dict[str, Array]:
    """The format's tensors for a weight f32 [N, K].

    Raises ContractError for a weight that is not a finite f32 matrix, whose shape does not fit the format, or whose
    scales overflow the format's scale type.
    """
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise ContractError("weight", "f32 [N, K]", f"{weight.dtype}{list(weight.shape)}")
    n, k = weight.shape
    format.tensor_specs(n, k)
    if not np.isfinite(weight).all():
        raise ContractError("weight", "finite values", "infinity or NaN")
    match format.packing:
        case "dense" if format.is_float:
            tensors = {"weight": _to_float(format, weight)}
        case "dense" if format.code == "f8e4m3fn":
            tensors = _f8e4m3fn(format, weight)
        case "dense":
            tensors = _channel(weight)
        case "ggml":
            packer = quantize_ggml.PACKERS[format.base.id]
            block_k = format.super_block or format.block_k
            blocks = _by_rows(weight, lambda rows: (packer(rows.reshape(-1, block_k)).reshape(rows.shape[0], -1),))[0]
            tensors = {"blocks": blocks}
        case "nibble_lo":
            tensors = _lowest_bits_first(format, weight)
        case "gptq_v1" | "gptq_v2":
            tensors = _gptq(format, weight)
        case "awq":
            tensors = _awq(format, weight)
        case _:
            raise ContractError("format.packing", "a packing that opsocket has a packer for", format)
    return tensors


def dequantize(format: QuantFormat, tensors: Mapping[str, Array], n: int, k: int) -> Float32:
    """The weight f32 [N, K]: the format's reference rounded to f32, to one unit in the last place."""
    if format.has_integer_codes:
        return format.group(tensors, n, k).dequantize()
    if not format.is_float:
        return format.scale_floats(tensors, n, k).dequantize()
    format.validate(tensors, n, k)
    return bf16_to_f32(tensors["weight"]) if format.id == "bf16" else tensors["weight"].astype(np.float32)


def _to_float(format: QuantFormat, weight: Float32) -> Array:
    if format.id == "bf16":
        return f32_to_bf16(weight)
    if format.id == "f16" and float(np.abs(weight).max()) >= 65520:
        raise ContractError("weight", "magnitudes that round to an f16 (below 65520)", float(np.abs(weight).max()))
    return weight.astype(np.float16 if format.id == "f16" else np.float32)


def _channel(weight: Float32) -> dict[str, Array]:
    def pack(rows: Float32) -> tuple[Array, ...]:
        scale = np.abs(rows).max(axis=1) / np.float32(127)
        return np.rint(divide(rows, scale[:, None])).clip(-127, 127).astype(np.int8), scale

    codes, scale = _by_rows(weight, pack)
    return {"weight": codes, "scale": scale}


def _f8e4m3fn(format: QuantFormat, weight: Float32) -> dict[str, Array]:
    n, k = weight.shape
    height, width = format.block_n or n, format.block_k or k
    whole = np.pad(np.abs(weight), ((0, -n % height), (0, -k % width)))
    largest = whole.reshape(len(whole) // height, height, -1, width).max(axis=(1, 3))
    scale = largest / np.float32(F8E4M3FN_MAX)
    of_weight = np.repeat(scale, height, axis=0)[:n]
    codes = np.empty(weight.shape, np.uint8)
    step = max(1, _CHUNK // k)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        codes[rows] = f32_to_f8e4m3fn(divide(weight[rows], np.repeat(of_weight[rows], width, axis=1)[:, :k]))
    return {"weight": codes, "scale": scale.reshape(format.tensor_specs(n, k)["scale"][1])}


def _lowest_bits_first(format: QuantFormat, weight: Float32) -> dict[str, Array]:
    def pack(rows: Float32) -> tuple[Array, ...]:
        codes, *rest = _round_asymmetric(rows, format) if format.zero == "int" else _round_symmetric(rows, format)
        per_byte = 8 // format.bits
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(format.bits)
        return np.bitwise_or.reduce(codes.reshape(len(rows), -1, per_byte) << shifts, axis=-1), *rest

    return dict(zip(("codes", "scale", "zero"), _by_rows(weight, pack), strict=False))


def _gptq(format: QuantFormat, weight: Float32) -> dict[str, Array]:
    k = weight.shape[1]
    order = np.arange(k)
    if format.g_idx:
        # What act-order does with a Hessian, without one: columns of like size share a group.
        order = np.argsort(-np.square(weight, dtype=np.float64).sum(axis=0), kind="stable")
    grouped_codes, scale, zero = _by_rows(weight, lambda rows: _round_asymmetric(rows[:, order], format))
    codes = np.empty_like(grouped_codes)
    codes[:, order] = grouped_codes
    if format.packing == "gptq_v1":
        zero = zero - np.uint8(1)
    tensors = {
        "qweight": _words(codes.T.reshape(k // 8, 8, -1), axis=1),
        "qzeros": _words(zero.T.reshape(zero.shape[1], -1, 8), axis=2),
        "scales": np.ascontiguousarray(scale.T),
    }
    if format.g_idx:
        group_of_column = np.empty(k, np.int32)
        group_of_column[order] = np.arange(k) // format.block_k
        tensors["g_idx"] = group_of_column
    return tensors


def _awq(format: QuantFormat, weight: Float32) -> dict[str, Array]:
    codes, scale, zero = _by_rows(weight, lambda rows: _round_asymmetric(rows, format))
    return {
        "qweight": _words(codes.T.reshape(codes.shape[1], -1, 8)[:, :, _AWQ_COLUMN_OF_NIBBLE], axis=2),
        "qzeros": _words(zero.T.reshape(zero.shape[1], -1, 8)[:, :, _AWQ_COLUMN_OF_NIBBLE], axis=2),
        "scales": np.ascontiguousarray(scale.T),
    }


def _words(nibbles: Bytes, axis: int) -> npt.NDArray[np.int32]:
    """Eight 4-bit codes along an axis -> one i32, the first in the lowest bits."""
    words = np.zeros(np.delete(nibbles.shape, axis), np.uint32)
    for place in range(8):
        words |= nibbles.take(place, axis).astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def _round_symmetric(rows: Float32, format: QuantFormat) -> tuple[Bytes, npt.NDArray[np.float16]]:
    """codes u8 [R, K] in 0..2^bits-1 about 2^(bits-1), scale f16 [R, K/G]."""
    groups = rows.reshape(len(rows), -1, format.block_k)
    middle = 1 << (format.bits - 1)
    scale = f16_at_least(np.maximum(groups.max(axis=2) / (middle - 1), -groups.min(axis=2) / middle))
    codes = np.rint(divide(groups, scale[:, :, None])) + middle
    return codes.clip(0, 2 * middle - 1).astype(np.uint8).reshape(rows.shape), scale


def _round_asymmetric(rows: Float32, format: QuantFormat) -> tuple[Bytes, npt.NDArray[np.float16], Bytes]:
    """codes u8 [R, K], scale f16 [R, K/G], zero u8 [R, K/G]; the zero point of gptq_v1 is at least 1."""
    groups = rows.reshape(len(rows), -1, format.block_k)
    top = (1 << format.bits) - 1
    below, above = -np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    lowest = np.maximum(below > 0, format.packing == "gptq_v1")
    zero = np.rint(divide(below * np.float32(top), below + above)).clip(lowest, top - (above > 0))
    scale = f16_at_least(np.maximum(divide(below, zero), divide(above, top - zero)))
    codes = np.rint(divide(groups, scale[:, :, None])) + zero[:, :, None]
    return codes.clip(0, top).astype(np.uint8).reshape(rows.shape), scale, zero.astype(np.uint8)


def _by_rows(weight: Float32, pack: Callable[[Float32], tuple[Array, ...]]) -> tuple[Array, ...]:
    """Pack a bounded number of rows at a time, and join each of the results along the rows."""
    step = max(1, _CHUNK // weight.shape[1])
    parts = [pack(weight[start : start + step]) for start in range(0, weight.shape[0], step)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))
