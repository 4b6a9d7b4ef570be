"""Rows of a table, in every weight format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    EmbeddingSpec,
    Request,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.matmul.formats import FORMATS, SMOKE_INT8
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.operators.rounding import check_rounded_once
from opsocket_conformance.tolerance import (
    rounded_once,
)


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
        ids[:3] = (self.n - 1, 0, self.n // 2 + 1)
        given = bench.out("out", (self.t, self.k), self.dtype)
        rows = bench.run(plan, bench.put("ids", ids), packed, out=given)
        bench.check_padding("out", given, rows, self.t)
        want = dequantize(fmt, tensors, self.n, self.k).value[ids]
        bound = rounded_once(want, self.dtype)
        bench.compare("rows", bench.get(rows), want, bound)
        check_rounded_once(bench, "rows", bench.get(rows), want, bound, self.dtype)


def cases() -> Iterator[Case]:
    for w in FORMATS:
        for dtype in DTYPES:
            yield Case(Embedding(w=w, dtype=dtype), 0, "smoke" if w == dtype else "default")
            if get_format(w).block_n > 1:
                yield Case(Embedding(n=300, k=144, w=w, dtype=dtype))
    for dtype in DTYPES:
        for w in SMOKE_INT8:
            yield Case(Embedding(w=w, dtype=dtype))
        for w in (dtype, "q8_0"):
            yield Case(Embedding(n=40001, k=32, w=w, dtype=dtype))
