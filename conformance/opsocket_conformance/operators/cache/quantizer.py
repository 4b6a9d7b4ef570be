"""What a KV cache stores: the pinned quantizer of `KVFormat`, in f32 where it says f32, exact elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opsocket.operators import KVFormat
from opsocket_conformance.floats import round_to, round_to_fp8
from opsocket_conformance.guard import judge_only
from opsocket_conformance.tolerance import TIE

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stored:
    """Values f64[T, H, D] after they went through a format: value = code * scale, exactly; fp8 codes are values too.

    other: the neighbouring code where x / s lies within a few roundings of a tie, else the code itself; also where s is
    a power of two, as nothing is rounded there but the tie.
    """

    codes: Float64
    other: Float64
    scale: Float64

    @property
    def values(self) -> Float64:
        return self.codes * self.scale

    def rows(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Stored:
        """Some of the tokens."""
        return Stored(self.codes[which], self.other[which], self.scale[which])

    def channels(self, count: int) -> Stored:
        """The first so many of each token's channels."""
        return Stored(self.codes[..., :count], self.other[..., :count], self.scale[..., :count])

    def as_read(self, values: Float64) -> Stored:
        """The same, with each code that may be either taken as the one that `values` are nearer to."""
        first, second = np.abs(values - self.codes * self.scale), np.abs(values - self.other * self.scale)
        return Stored(np.where(second < first, self.other, self.codes), self.other, self.scale)


@judge_only
def store(values: Float32, fmt: KVFormat, static_scale: Float32 | None = None) -> Stored:
    """values f32[T, H, D] written into a cache of format `fmt`."""
    x = np.asarray(values, np.float32)
    if not fmt.is_quantized:
        rounded = round_to(x, fmt.code).astype(np.float64)
        return Stored(rounded, rounded, np.ones(x.shape))
    scale = _scale(x, fmt, static_scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(scale == 0, np.float32(0), x / scale).astype(np.float64)
    codes, other = (_integer_codes if fmt.code in ("i8", "i4", "i2") else _fp8_codes)(quotient, fmt)
    # By a power of two nothing is rounded: there, ties are ties, and go to the even code.
    other = np.where(np.frexp(scale)[0] == 0.5, codes, other)
    return Stored(codes, other, np.broadcast_to(scale, x.shape).astype(np.float64))


def _scale(x: Float32, fmt: KVFormat, static_scale: Float32 | None) -> Float32:
    """f32, broadcastable against x."""
    if fmt.granularity == "none":
        return np.ones((1, 1, 1), np.float32)
    if fmt.granularity == "token_head":
        largest = np.abs(x).max(axis=-1, keepdims=True)
        return round_to(largest / np.float32(fmt.max_code), fmt.scale_dtype)
    assert static_scale is not None
    shape = {"tensor": (1, 1, 1), "head": (1, -1, 1), "channel": (1, *x.shape[1:])}[fmt.granularity]
    return static_scale.astype(np.float32).reshape(shape)


def _integer_codes(quotient: Float64, fmt: KVFormat) -> tuple[Float64, Float64]:
    limit = fmt.max_code
    codes = np.clip(np.rint(quotient), -limit, limit)
    lower = np.floor(quotient)
    near_tie = np.abs(quotient - lower - 0.5) <= TIE * np.abs(quotient)
    neighbour = np.where(codes == lower, lower + 1, lower)
    return codes, np.where(near_tie, np.clip(neighbour, -limit, limit), codes)


def _fp8_codes(quotient: Float64, fmt: KVFormat) -> tuple[Float64, Float64]:
    codes = round_to_fp8(quotient, fmt.code)
    nudged = [round_to_fp8(quotient * (1 + sign * TIE), fmt.code) for sign in (-1, 1)]
    other = np.where(nudged[0] != codes, nudged[0], nudged[1])
    return codes, other


@judge_only
def static_scale(values: Float32, fmt: KVFormat, headroom: float) -> Float32 | None:
    """A calibrated scale in the shape that `allocate_cache` takes, None where the format has none.

    headroom below 1 makes the largest values saturate.
    """
    if not fmt.is_static:
        return None
    axes = {"tensor": (0, 1, 2), "head": (0, 2), "channel": (0,)}[fmt.granularity]
    shape = {"tensor": (1,), "head": (-1,), "channel": values.shape[1:]}[fmt.granularity]
    largest = np.maximum(np.abs(values).max(axis=axes, initial=0.0), 2.0**-10)
    scale: Float32 = (headroom * largest / fmt.max_code).astype(np.float32).reshape(shape)
    return scale
