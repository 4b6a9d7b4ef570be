"""What a prepared weight means: `prepare_weight`, then `dequantize`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    EmbeddingSpec,
    MatmulSpec,
    Request,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.matmul.formats import FORMATS, INT8, SMOKE
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.tolerance import (
    rounded_once,
)


@dataclass(frozen=True)
class Dequantize(Check):
    """`prepare_weight` then `dequantize`: the format's value within one unit in the last place of f32, and the tensors
    left alone; of two weights of one shape. op: matmul or embedding, whose kernel prepares."""

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
        weights = [random_weight(rng, fmt, self.n, self.k) for _ in range(2)]
        # Both before either is read: a weight kept by its format, its shape or its address would stand for the other.
        packed = [bench.prepare(plan, tensors) for tensors in weights]
        for name, tensors, prepared in zip(("dequantize", "dequantize of another"), weights, packed, strict=True):
            got = bench.get(plan.dequantize(bench.session, prepared))  # type: ignore[attr-defined]
            want = dequantize(fmt, tensors, self.n, self.k).value
            bench.compare(name, got, want, rounded_once(want, "f32"), biased=False)


def cases() -> Iterator[Case]:
    for w in FORMATS:
        yield Case(Dequantize(w=w), 0, "smoke" if w in SMOKE else "default")
        yield Case(Dequantize(w=w, op="embedding"))
        if get_format(w).block_n > 1:
            yield Case(Dequantize(w=w, n=200, k=336))
    for w in INT8:
        n, k = 40, 384 if get_format(w).block_k == 48 else 512
        yield Case(Dequantize(w=w, n=n, k=k))
