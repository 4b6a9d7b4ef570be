"""Random weights in any format: every code appears but NaN, and neighbouring groups have scales that differ by up to 30
times."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opsocket.operators import ContractError
from opsocket.quantization import QuantFormat
from opsocket_conformance.floats import round_to

Tensors = dict[str, npt.NDArray[np.generic]]

# Byte offsets of the f16 scales (and minimums) in one ggml block.
_HALVES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,),
    "q2_K": (80, 82), "q3_K": (108,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,),
    "iq4_nl": (0,), "iq4_xs": (0,),
}  # fmt: skip
_SMALLER = {"q2_K": 1 / 8, "q3_K": 1 / 16, "q4_K": 1 / 32, "q5_K": 1 / 32, "q6_K": 1 / 64, "iq4_xs": 1 / 16}


def random_weight(
    rng: np.random.Generator, fmt: QuantFormat, n: int, k: int, extreme: bool = False, size: float = 1.0
) -> Tensors:
    """Tensors of a weight [n, k]; values of order 1 / sqrt(k) times the format's largest code.

    extreme: every code at its largest, all of one sign, so that narrow integer sums overflow. size: of quantized
    weights, a factor on their scales.
    """
    if fmt.is_float:
        weight = round_to(rng.standard_normal((n, k)) * (3.0 / np.sqrt(k)), fmt.id)
        return {"weight": _as_stored(fmt.id, weight)}
    tensors: Tensors = {}
    for name, (dtype, shape) in fmt.tensor_specs(n, k).items():
        if name in ("scale", "scales"):
            tensors[name] = (size * _scales(rng, shape, k)).astype({"f16": np.float16, "f32": np.float32}[dtype])
        elif name == "zero":
            tensors[name] = rng.integers(0, 1 << fmt.bits, shape).astype(np.uint8)
        elif name == "g_idx":
            tensors[name] = rng.permutation(np.arange(k) // fmt.block_k).astype(np.int32)
        elif name == "blocks":
            tensors[name] = _blocks(rng, fmt, shape, k, size)
        else:
            tensors[name] = _codes(rng, dtype, shape, extreme)
    return tensors


def _as_stored(dtype: str, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    if dtype == "bf16":
        return (weight.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return weight.astype({"f32": np.float32, "f16": np.float16}[dtype])


def _scales(rng: np.random.Generator, shape: tuple[int, ...], k: int) -> npt.NDArray[np.float64]:
    scales: npt.NDArray[np.float64] = np.exp2(rng.uniform(-5, 0, shape)) / np.sqrt(k)
    return scales


def _codes(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], extreme: bool) -> npt.NDArray[np.generic]:
    if dtype == "i8":
        return np.full(shape, 127, np.int8) if extreme else rng.integers(-128, 128, shape).astype(np.int8)
    if dtype == "u8":
        return np.full(shape, 255, np.uint8) if extreme else rng.integers(0, 256, shape).astype(np.uint8)
    if dtype == "f8e4m3fn":
        codes = np.full(shape, 126) if extreme else rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)
        return codes.astype(np.uint8)
    if dtype == "i32":
        words = np.full(shape, 2**32 - 1) if extreme else rng.integers(0, 2**32, shape)
        return words.astype(np.uint32).view(np.int32)
    raise ContractError("dtype", "i8, u8, i32 or f8e4m3fn codes", dtype)


def _blocks(
    rng: np.random.Generator, fmt: QuantFormat, shape: tuple[int, ...], k: int, size: float
) -> npt.NDArray[np.uint8]:
    blocks = rng.integers(0, 256, (shape[0], shape[1] // fmt.block_bytes, fmt.block_bytes)).astype(np.uint8)
    if fmt.scale_dtype == "e8m0":
        blocks[..., 0] = 127 + np.rint(np.log2(_scales(rng, blocks.shape[:2], k)))
        return blocks.reshape(shape)
    for offset in _HALVES[fmt.base.id]:
        scale = (
            _scales(rng, blocks.shape[:2], k)
            * _SMALLER.get(fmt.base.id, 1.0)
            * size
            * rng.choice([-1, 1], blocks.shape[:2])
        )
        blocks[..., offset : offset + 2] = scale.astype("<f2").view(np.uint8).reshape(*blocks.shape[:2], 2)
    return blocks.reshape(shape)
