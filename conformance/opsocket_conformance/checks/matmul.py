"""Matrix products over weights in every format, the weights themselves, and the quantizer of activations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    EmbeddingSpec,
    GroupedMatmulSpec,
    MatmulSpec,
    Numerics,
    QuantizeActivationSpec,
    Request,
)
from opsocket.quantization import QuantFormat, get_format
from opsocket_conformance import tolerance
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.inputs.weights import random_weight
from opsocket_conformance.oracle.matmul import matmul, quantize_activation
from opsocket_conformance.oracle.weights import Weight, dequantize
from opsocket_conformance.tolerance import Bound

Float32 = npt.NDArray[np.float32]


def activations(rng: np.random.Generator, kind: str, rows: int, width: int, dtype: str) -> Float32:
    """x f32[M, K]. "normal"; "outliers": a few channels 60 times larger, a zero row and a tiny one; "extreme": all of
    one size and sign; "cancel": sums far smaller than their terms."""
    x = rng.standard_normal((rows, width))
    if kind == "outliers":
        x[:, rng.choice(width, max(width // 64, 1), replace=False)] *= 60
        x[1::7] = 0.0
        x[2::7] *= 2.0**-10
    elif kind == "extreme":
        x[:] = 3.0
    elif kind == "cancel":
        x[:, 1::2] = -x[:, ::2][:, : x[:, 1::2].shape[1]]
    return round_to(x, dtype)


def expect(
    fmt: QuantFormat, x: Float32, weight: Weight, bias: Float64 | None, out_dtype: str, numerics: Numerics
) -> tuple[Float64, Bound]:
    """The product that a format's id stands for, its activation precision included, and its bound."""
    if fmt.activation == "none":
        exact = x.astype(np.float64)
        want = matmul(exact, weight.value, bias)
        return want, tolerance.matmul(exact, weight.magnitude, want, out_dtype, numerics, bias)
    row = quantize_activation(x)
    scale = row.scale.astype(np.float64)[:, None]
    product = matmul(row.codes * scale, weight.value)
    flips = (row.near_tie * scale) @ np.abs(weight.value).T
    want = product if bias is None else product + bias
    return want, tolerance.integer_matmul(flips, product, want, out_dtype, bias)


@dataclass(frozen=True)
class Matmul(Check):
    """m, n, k: rows of x, of the weight, and what they have in common. w: weight format. dtype, out: of x, of y. x: a
    kind of `activations`. strided: rows of x are slices of wider ones."""

    name: ClassVar[str] = "matmul"
    shown: ClassVar[tuple[str, ...]] = ("m", "n", "k", "w", "dtype")

    m: int = 3
    n: int = 136
    k: int = 256
    w: str = "bf16"
    dtype: str = "bf16"
    out: str = ""
    x: str = "normal"
    bias: bool = False
    strided: bool = False

    @property
    def operator(self) -> str:
        return "matmul"

    def features(self) -> frozenset[str]:
        needs = {"op:matmul", f"dtype:{self.dtype}", f"weight:{self.w}"}
        return frozenset(needs | ({f"out:{self.out}"} if self.out not in ("", self.dtype) else set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt, out_dtype = get_format(self.w), self.out or self.dtype
        spec = MatmulSpec(self.w, self.n, self.k, self.dtype, out_dtype, self.bias)
        plan = bench.plan(Request(spec))
        tensors = random_weight(rng, fmt, self.n, self.k, extreme=self.x == "extreme")
        packed = bench.prepare(plan, tensors)
        x = activations(rng, self.x, self.m, self.k, self.dtype)
        bias = rng.standard_normal(self.n).astype(np.float32) if self.bias else None
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", (self.m, self.n), out_dtype)
        y = bench.run(
            plan,
            put("x", x, self.dtype),
            packed,
            None if bias is None else bench.put("bias", bias),
            out=given,
        )
        bench.check_padding("out", given, y, self.m)
        exact_bias = None if bias is None else bias.astype(np.float64)
        weight = dequantize(fmt, tensors, self.n, self.k)
        want, bound = expect(fmt, x, weight, exact_bias, out_dtype, spec.numerics)
        bench.compare("y", bench.get(y), want, bound)
        larger = matmul(x.astype(np.float64), weight.value * 1.01, exact_bias)
        if fmt.activation == "none":
            bench.read_filter("weight scale +1%", bench.get(y), want, larger, bound)


@dataclass(frozen=True)
class Dequantize(Check):
    """`prepare_weight` then `dequantize`: the format's value within one unit in the last place of f32, and the tensors
    left alone. op: matmul or embedding, whose kernel prepares."""

    name: ClassVar[str] = "dequantize"
    shown: ClassVar[tuple[str, ...]] = ("w", "n", "k")

    w: str = "bf16"
    n: int = 40
    k: int = 512
    dtype: str = "bf16"
    op: str = "matmul"

    @property
    def operator(self) -> str:
        return self.op

    def features(self) -> frozenset[str]:
        return frozenset({f"op:{self.op}", f"dtype:{self.dtype}", f"weight:{self.w}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt = get_format(self.w)
        spec = (
            EmbeddingSpec(self.w, self.n, self.k, self.dtype)
            if self.op == "embedding"
            else MatmulSpec(self.w, self.n, self.k, self.dtype, self.dtype)
        )
        plan = bench.plan(Request(spec))
        tensors = random_weight(rng, fmt, self.n, self.k)
        packed = bench.prepare(plan, tensors)
        got = bench.get(plan.dequantize(bench.session, packed))  # type: ignore[attr-defined]
        want = dequantize(fmt, tensors, self.n, self.k).value
        bench.compare("dequantize", got, want, tolerance.rounded_once(want, "f32"), biased=False)


@dataclass(frozen=True)
class GroupedMatmul(Check):
    """experts: how many; m: rows, which come sorted by expert, some of which have none; other fields as in `Matmul`."""

    name: ClassVar[str] = "grouped_matmul"
    shown: ClassVar[tuple[str, ...]] = ("experts", "m", "n", "k", "w", "dtype")

    experts: int = 5
    m: int = 23
    n: int = 40
    k: int = 256
    w: str = "bf16"
    dtype: str = "bf16"
    out: str = ""
    bias: bool = False

    @property
    def operator(self) -> str:
        return "grouped_matmul"

    def features(self) -> frozenset[str]:
        needs = {"op:grouped_matmul", f"dtype:{self.dtype}", f"weight:{self.w}"}
        return frozenset(needs | ({f"out:{self.out}"} if self.out not in ("", self.dtype) else set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt, out_dtype = get_format(self.w), self.out or self.dtype
        spec = GroupedMatmulSpec(self.experts, self.w, self.n, self.k, self.dtype, out_dtype, self.bias)
        plan = bench.plan(Request(spec))
        tensors = [random_weight(rng, fmt, self.n, self.k) for _ in range(self.experts)]
        packed = [bench.prepare(plan, part) for part in tensors]
        offsets = self._offsets(rng)
        used = int(offsets[-1])
        x = activations(rng, "normal", self.m, self.k, self.dtype)
        x[used:] = np.nan
        bias = rng.standard_normal((self.experts, self.n)).astype(np.float32) if self.bias else None
        given = bench.out("out", (self.m, self.n), out_dtype)
        y = bench.run(
            plan,
            bench.put("x", x, self.dtype),
            packed,
            bench.put("expert_offsets", offsets),
            None if bias is None else bench.put("bias", bias),
            out=given,
        )
        bench.check_padding("out", given, y, used)
        got = bench.get(y)
        for expert, (first, last) in enumerate(itertools.pairwise(offsets)):
            weight = dequantize(fmt, tensors[expert], self.n, self.k)
            exact_bias = None if bias is None else bias[expert].astype(np.float64)
            want, bound = expect(fmt, x[first:last], weight, exact_bias, out_dtype, spec.numerics)
            bench.compare(f"y of expert {expert}", got[first:last], want, bound)

    def _offsets(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Uneven shares; expert 1 gets nothing, and the last rows belong to nobody."""
        used = self.m - 2 if self.m > 4 else self.m
        cuts = np.sort(rng.integers(0, used + 1, self.experts - 1))
        offsets = np.concatenate([[0], cuts, [used]])
        if self.experts > 2:
            offsets[2] = offsets[1]
        return offsets.astype(np.int64)


@dataclass(frozen=True)
class Embedding(Check):
    """Rows of a table: n tokens of k channels in format w, read as `dtype`."""

    name: ClassVar[str] = "embedding"
    shown: ClassVar[tuple[str, ...]] = ("n", "k", "w", "dtype")

    n: int = 72
    k: int = 256
    w: str = "bf16"
    dtype: str = "bf16"
    t: int = 17

    @property
    def operator(self) -> str:
        return "embedding"

    def features(self) -> frozenset[str]:
        return frozenset({"op:embedding", f"dtype:{self.dtype}", f"weight:{self.w}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt = get_format(self.w)
        plan = bench.plan(Request(EmbeddingSpec(self.w, self.n, self.k, self.dtype)))
        tensors = random_weight(rng, fmt, self.n, self.k)
        packed = bench.prepare(plan, tensors)
        ids = rng.integers(0, self.n, self.t)
        ids[:2] = (self.n - 1, 0)
        given = bench.out("out", (self.t, self.k), self.dtype)
        rows = bench.run(plan, bench.put("ids", ids), packed, out=given)
        bench.check_padding("out", given, rows, self.t)
        want = dequantize(fmt, tensors, self.n, self.k).value[ids]
        bench.compare("rows", bench.get(rows), want, tolerance.rounded_once(want, self.dtype))


@dataclass(frozen=True)
class QuantizeActivation(Check):
    """m rows of k channels of type `dtype`; x: a kind of `activations`, or "ties"."""

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
        if self.x == "ties":
            x = rng.integers(-127, 127, (self.m, self.k)) + 0.5
            x[:, 0] = 127.0
            x = round_to(x, self.dtype)
        else:
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
