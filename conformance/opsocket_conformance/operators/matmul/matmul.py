"""Matrix products over weights in every format."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from opsocket.operators import MatmulSpec, Numerics, Request
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.matmul.formats import FORMATS, INT8, SMOKE, SMOKE_INT8
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect, matmul
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.operators.rounding import check_rounded_once


@dataclass(frozen=True)
class Matmul(Check):
    """m, n, k: rows of x, of the weight, and what they have in common. w: weight format. dtype, out: of x, of y. x: a
    kind of `activations`, or "subnormal": scales below f16's normal numbers. strided: rows of x are slices of wider
    ones. acc, step, deq, scl: the request's numerics."""

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
    acc: str = "f32"
    step: int = 1
    deq: str = "f32"
    scl: str = "f32"

    @property
    def operator(self) -> str:
        return "matmul"

    def features(self) -> frozenset[str]:
        needs = {"op:matmul", f"dtype:{self.dtype}", f"weight:{self.w}"}
        return frozenset(needs | ({f"out:{self.out}"} if self.out not in ("", self.dtype) else set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt, out_dtype = get_format(self.w), self.out or self.dtype
        # The numerics themselves say which words they know.
        numerics = Numerics(
            accumulate=cast(Any, self.acc),
            accumulate_step=self.step,
            dequantized=cast(Any, self.deq),
            scales=cast(Any, self.scl),
        )
        spec = MatmulSpec(self.w, self.n, self.k, self.dtype, out_dtype, self.bias, numerics)
        plan = bench.plan(Request(spec))
        size = 2.0**-12 if self.x == "subnormal" else 1.0
        tensors = random_weight(rng, fmt, self.n, self.k, extreme=self.x == "extreme", size=size)
        packed = bench.prepare(plan, tensors)
        x = activations(rng, self.x, self.m, self.k, self.dtype)
        bias = rng.standard_normal(self.n).astype(np.float32) if self.bias else None
        put = bench.put_strided if self.strided else bench.put
        given = bench.out("out", (self.m, self.n), out_dtype, strided=self.strided)
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
        check_rounded_once(bench, "y", bench.get(y), want, bound, out_dtype)
        larger = matmul(x.astype(np.float64), weight.value * 1.01, exact_bias)
        if fmt.activation == "none":
            bench.read_filter("weight scale +1%", bench.get(y), want, larger, bound)


def cases() -> Iterator[Case]:
    for w in FORMATS:
        for dtype in DTYPES:
            yield from _cases(w, dtype)
    for w in INT8:
        for dtype in DTYPES:
            yield from _int8_cases(w, dtype)


def _cases(w: str, dtype: str) -> Iterator[Case]:
    smoke = w == dtype or (w in SMOKE and dtype == "bf16")
    yield Case(Matmul(w=w, dtype=dtype), 0, "smoke" if smoke else "default")
    yield Case(Matmul(m=1, n=72, k=512, w=w, dtype=dtype, bias=True))
    yield Case(Matmul(m=37, n=136, k=256, w=w, dtype=dtype, strided=True), 0, "smoke" if w == dtype else "default")
    yield Case(Matmul(m=5, n=8, k=1024, w=w, dtype=dtype, x="outliers"))
    yield Case(Matmul(m=67, n=264, k=768, w=w, dtype=dtype), 0, "full")
    yield Case(Matmul(m=0, n=40, k=256, w=w, dtype=dtype))
    if dtype != "f32":
        yield Case(Matmul(w=w, dtype=dtype, out="f32"))
    if dtype != "f32" and get_format(w).activation == "none":
        yield Case(Matmul(w=w, dtype=dtype, acc="f32_truncating", deq=dtype))
    if dtype != "f32" and w in SMOKE:
        yield Case(Matmul(w=w, dtype=dtype, out="f32", acc="f32_truncating", step=16))
        yield Case(Matmul(w=w, dtype=dtype, deq=dtype))
    if dtype != "f32" and get_format(w).activation == "none":
        # What an engine permits for speed: matrix units, of which a dequantized weight takes rounded numbers.
        # Some vendors' products of 4-bit weights are for f16 alone.
        asked = smoke or w == "gptq_v2_i4_g64"
        yield Case(Matmul(m=37, w=w, dtype=dtype, acc="f32_truncating", deq=dtype), 0, "smoke" if asked else "default")
        if w in SMOKE:
            yield Case(Matmul(m=1, w=w, dtype=dtype, acc="f32_truncating", deq=dtype))
            yield Case(Matmul(m=130, n=72, w=w, dtype=dtype, acc="f32_truncating", deq=dtype, bias=True))
    if dtype != "f32" and get_format(w).activation == "none" and not get_format(w).is_float:
        yield from _rounded_scales(w, dtype)
    if dtype == "f32" or get_format(w).activation != "none":
        yield Case(Matmul(m=2, n=24, k=4096, w=w, dtype=dtype, x="cancel"))
        yield Case(Matmul(m=2, n=24, k=4096, w=w, dtype=dtype, x="extreme"))
    if get_format(w).activation != "none":
        yield Case(Matmul(m=3, n=37, k=1, w=w, dtype=dtype))
        for m, k in ((3, 256), (1, 512), (37, 96)):
            yield Case(Matmul(m=m, n=72, k=k, w=w, dtype=dtype, x="ties"))
            yield Case(Matmul(m=m, n=72, k=k, w=w, dtype=dtype, out="" if dtype == "f32" else "f32", x="ties"))
    if dtype != "f16" and get_format(w).scale_dtype == "f16":
        yield Case(Matmul(m=3, n=40, w=w, dtype=dtype, x="subnormal"))
    if get_format(w).activation == "none" and w in (*SMOKE, dtype):
        yield Case(Matmul(m=3, n=256, w=w, dtype=dtype))
    if get_format(w).zero != "none" and get_format(w).activation == "none":
        # One group, or one block of them, is all of K: a scale of a whole row, and still a zero point or minimum.
        yield Case(Matmul(m=2, n=40, k=get_format(w).super_block or get_format(w).block_k, w=w, dtype=dtype))
    if get_format(w).block_n > 1:
        # The last block of rows, of columns, or of both, is a part of one.
        yield Case(Matmul(m=3, n=200, k=576, w=w, dtype=dtype))
        yield Case(Matmul(m=17, n=130, k=144, w=w, dtype=dtype))
        yield Case(Matmul(m=1, n=260, k=336, w=w, dtype=dtype))
    if get_format(w).is_float:
        yield Case(Matmul(m=3, n=37, k=101, w=w, dtype=dtype))
        yield Case(Matmul(m=1, n=1, k=1, w=w, dtype=dtype))


def _rounded_scales(w: str, dtype: str) -> Iterator[Case]:
    """Scales in the activations' type, as some vendors' products of weights in codes take them."""
    smoke = (w, dtype) in (("i8_channel", "f16"), ("i8_channel", "bf16"), ("gptq_v2_i4_g64", "bf16"), ("q8_0", "bf16"))
    fast: dict[str, Any] = {"w": w, "dtype": dtype, "acc": "f32_truncating", "deq": dtype, "scl": dtype}
    yield Case(Matmul(m=37, **fast), 0, "smoke" if smoke else "default")
    yield Case(Matmul(w=w, dtype=dtype, out="f32", scl=dtype))
    if w in ("i8_channel", "gptq_v2_i4_g64", "q8_0"):
        yield Case(Matmul(m=1, n=72, k=512, bias=True, **fast))


def _int8_cases(w: str, dtype: str) -> Iterator[Case]:
    """Rows and columns on both sides of what a tile holds; K a multiple of the groups, and where these allow it of no
    more than 32 or 48."""
    fmt = get_format(w)
    unit = math.lcm(fmt.super_block or fmt.block_k or 32, 32)
    odd_n = 40 if fmt.packing in ("gptq_v1", "gptq_v2", "awq") else 37
    yield Case(Matmul(k=unit * 3, w=w, dtype=dtype), 0, "smoke" if w in SMOKE_INT8 and dtype == "bf16" else "default")
    yield Case(Matmul(m=1, n=72, k=unit * 5, w=w, dtype=dtype, bias=True))
    yield Case(Matmul(m=17, n=odd_n, k=unit, w=w, dtype=dtype, x="outliers"))
    yield Case(Matmul(m=67, n=264, k=unit * 3, w=w, dtype=dtype), 0, "full")
    if dtype != "f16":
        yield Case(Matmul(m=8, n=104, k=unit * 2, w=w, dtype=dtype, strided=True, out="f32"))
        yield Case(Matmul(m=64, n=odd_n, k=unit * 3, w=w, dtype=dtype, x="ties", bias=True))
    if dtype == "f32":
        yield Case(Matmul(m=2, n=24, k=unit * (3840 // unit), w=w, dtype=dtype, x="cancel"))
        yield Case(Matmul(m=2, n=24, k=unit * (3840 // unit), w=w, dtype=dtype, x="extreme"))
        yield Case(Matmul(m=3, n=40, k=unit, w=w, dtype=dtype, x="subnormal"))
