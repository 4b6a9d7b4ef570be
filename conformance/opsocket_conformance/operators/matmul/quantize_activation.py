"""The pinned quantizer of activations: codes and scales, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    QuantizeActivationSpec,
    Request,
)
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.tolerance import (
    TIE,
)

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantizeActivation(Check):
    """m rows of k channels of type `dtype`; x: a kind of `activations`."""

    name: ClassVar[str] = "quantize_activation"
    shown: ClassVar[tuple[str, ...]] = ("m", "k", "dtype", "x")

    m: int = 13
    k: int = 200
    dtype: str = "bf16"
    x: str = "normal"

    @property
    def operator(self) -> str:
        return "quantize_activation"

    def features(self) -> frozenset[str]:
        return frozenset({"op:quantize_activation", f"dtype:{self.dtype}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(QuantizeActivationSpec(self.k, "i8_token", self.dtype)))
        x = activations(rng, self.x, self.m, self.k, self.dtype)
        codes, scale = bench.run(plan, bench.put("x", x, self.dtype))
        want = quantize_activation(x)
        bench.same("scale", bench.get(scale), want.scale.astype(np.float64))
        got = bench.get(codes)
        # At a tie that f32 division can't place, either neighbour; an exact tie goes to the even code.
        off = np.abs(got - want.codes)
        wrong = off > np.where(want.near_tie & ~_exact_tie(x, want.scale), 1, 0)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            count = int(wrong.sum())
            bench.fail(f"codes[{at[0]}, {at[1]}]: {got[at]:.0f}, wanted {want.codes[at]:.0f}; {count} are wrong")


def _exact_tie(x: Float32, scale: Float32) -> npt.NDArray[np.bool_]:
    """Quotients that are a half exactly: no rounding stands between them and the tie."""
    twice, divisor = 2 * x.astype(np.float64), scale.astype(np.float64)[:, None]
    quotient = np.rint(np.divide(twice, divisor, out=np.zeros_like(twice), where=divisor > 0))
    exact: npt.NDArray[np.bool_] = (np.mod(quotient, 2) == 1) & (quotient * divisor == twice)
    return exact


@dataclass(frozen=True, eq=False)
class Activation:
    """Rows quantized to int8. codes f64[M, K]; scale f32[M]; near_tie bool[M, K]: the code may be either neighbour."""

    codes: Float64
    scale: Float32
    near_tie: npt.NDArray[np.bool_]


@judge_only
def quantize_activation(x: Float32) -> Activation:
    """Scheme "i8_token": s = amax / 127 in f32, codes = clamp(round_half_even(x / s), +-127); a zero row gives 0."""
    x = np.asarray(x, np.float32)
    scale = (np.abs(x).max(axis=-1) / np.float32(127)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scale[:, None] == 0, np.float32(0), x / scale[:, None]).astype(np.float64)
    near_tie = np.abs(quotient - np.floor(quotient) - 0.5) <= TIE * np.abs(quotient)
    near_tie &= np.frexp(scale)[0][:, None] != 0.5  # by a power of two nothing is rounded but the tie itself
    return Activation(np.clip(np.rint(quotient), -127, 127), scale, near_tie)


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """What a format with int8 activations multiplies instead of x. value f64[M, K]: codes times scales, exactly.
    step f64[M, K]: the scale where the code may be either neighbour, else 0."""

    value: Float64
    step: Float64


@judge_only
def int8_rows(x: Float32, activation: str, order: npt.NDArray[np.int64]) -> Int8Rows:
    """x f32[M, K] by activation "i8_token", a scale for each row; or "i8_g32", one for each 32 columns in `order`."""
    m, k = x.shape
    codes = quantize_activation(x[:, order].reshape(-1, ACTIVATION_GROUP if activation == "i8_g32" else k))
    scale = codes.scale.astype(np.float64)[:, None]
    value, step = np.empty((m, k)), np.empty((m, k))
    value[:, order], step[:, order] = (codes.codes * scale).reshape(m, k), (codes.near_tie * scale).reshape(m, k)
    return Int8Rows(value, step)


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for x in ("normal", "outliers", "ties"):
            yield Case(QuantizeActivation(dtype=dtype, x=x), 0, "smoke" if x == "normal" else "default")
        yield Case(QuantizeActivation(m=1, k=1, dtype=dtype))
        for m, k in ((5, 1024), (67, 33)):
            for x in ("normal", "outliers", "ties"):
                yield Case(QuantizeActivation(m, k, dtype, x))
        yield Case(QuantizeActivation(m=0, k=64, dtype=dtype))
