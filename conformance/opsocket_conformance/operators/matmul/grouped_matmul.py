"""A product per expert, over rows sorted by expert."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    GroupedMatmulSpec,
    Numerics,
    Request,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize

SMOKE_GROUPED: Final = ("gptq_v1_i4_g32_act", "q4_1_a8")
"""What kernels of experts are made apart for: columns in another order, int8 activations."""


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
    acc: str = "f32"
    deq: str = "f32"
    scl: str = "f32"

    @property
    def operator(self) -> str:
        return "grouped_matmul"

    def features(self) -> frozenset[str]:
        needs = {"op:grouped_matmul", f"dtype:{self.dtype}", f"weight:{self.w}"}
        return frozenset(needs | ({f"out:{self.out}"} if self.out not in ("", self.dtype) else set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        fmt, out_dtype = get_format(self.w), self.out or self.dtype
        numerics = Numerics(accumulate=cast(Any, self.acc), dequantized=cast(Any, self.deq), scales=cast(Any, self.scl))
        spec = GroupedMatmulSpec(self.experts, self.w, self.n, self.k, self.dtype, out_dtype, self.bias, numerics)
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


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for w in (
            dtype, "q8_0", "q4_K", "i4_g64", "f8e4m3fn_128x128", "mxfp4", "gptq_v1_i4_g32_act", "i8_channel_a8",
            "q4_1_a8", "q4_K_a8g32", "i4_g64_a8g32",
        ):  # fmt: skip
            smoke = w == dtype or (w in SMOKE_GROUPED and dtype == "bf16")
            yield Case(GroupedMatmul(w=w, dtype=dtype), 0, "smoke" if smoke else "default")
            yield Case(GroupedMatmul(experts=17, m=9, n=24, k=512, w=w, dtype=dtype, bias=True))
        yield Case(GroupedMatmul(experts=1, m=1, w=dtype, dtype=dtype))
    for dtype in ("bf16", "f16"):
        permitted: dict[str, Any] = {"dtype": dtype, "acc": "f32_truncating", "deq": dtype}
        for w in (dtype, "i4_g64", "gptq_v2_i4_g64", "q8_0", "q4_K"):
            yield Case(GroupedMatmul(w=w, **permitted), 0, "smoke" if w == dtype else "default")
        yield Case(GroupedMatmul(experts=17, m=9, n=24, k=512, w=dtype, bias=True, **permitted))
        for w in ("i8_channel", "i4_g64", "gptq_v2_i4_g64"):
            smoke = w == "i8_channel" and dtype == "bf16"
            yield Case(GroupedMatmul(w=w, scl=dtype, **permitted), 0, "smoke" if smoke else "default")
            yield Case(GroupedMatmul(experts=17, m=9, n=24, k=512, w=w, bias=True, scl=dtype, **permitted))
