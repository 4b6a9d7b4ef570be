"""From logits to token ids: exact, on logits where rounding can't decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import ArgmaxSpec, Request, SampleBatch, SampleSpec
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.oracle.sampling import argmax, sample

_MARGIN = 1e-5
_ATTEMPTS = 200


@dataclass(frozen=True)
class Argmax(Check):
    """b rows of v logits. x: "normal"; "ties": several largest; "infinite": -inf among them, one row all -inf."""

    name: ClassVar[str] = "argmax"
    shown: ClassVar[tuple[str, ...]] = ("b", "v", "dtype", "x")

    b: int = 5
    v: int = 1009
    dtype: str = "bf16"
    x: str = "normal"

    @property
    def operator(self) -> str:
        return "argmax"

    def features(self) -> frozenset[str]:
        return frozenset({"op:argmax", f"dtype:{self.dtype}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(ArgmaxSpec(self.v, self.dtype)))
        logits = round_to(rng.standard_normal((self.b, self.v)), self.dtype)
        if self.x == "ties":
            logits[:, rng.choice(self.v, 7, replace=False)] = 9.0
            logits[0] = 2.0
        if self.x == "infinite":
            logits[:, rng.choice(self.v, self.v // 2, replace=False)] = -np.inf
            logits[1] = -np.inf
            logits[2, self.v - 1] = np.inf
        given = bench.out("out", (self.b,), "i64")
        ids = bench.run(plan, bench.put("logits", logits, self.dtype), out=given)
        bench.check_padding("out", given, ids, self.b)
        bench.same("ids", bench.get(ids).astype(np.int64), argmax(logits.astype(np.float64)))


@dataclass(frozen=True)
class Sample(Check):
    """b rows of v logits, each with settings of its own. how: the setting that is tried: "plain", "greedy", "top_k",
    "top_p", "min_p", "penalties", or "all" together."""

    name: ClassVar[str] = "sample"
    shown: ClassVar[tuple[str, ...]] = ("b", "v", "dtype", "how")

    b: int = 9
    v: int = 211
    dtype: str = "f32"
    how: str = "all"

    @property
    def operator(self) -> str:
        return "sample"

    def features(self) -> frozenset[str]:
        return frozenset({"op:sample", f"dtype:{self.dtype}"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        request = Request(SampleSpec(self.v, self.dtype))
        bench.plan(request)
        logits = round_to(2.5 * rng.standard_normal((self.b, self.v)), self.dtype)
        exact = logits.astype(np.float64)
        batch, want = self._decided(rng, exact)
        plan = bench.plan(request, batch)
        given = bench.out("out", (self.b,), "i64")
        ids = bench.run(plan, bench.put("logits", logits, self.dtype), out=given)
        bench.check_padding("out", given, ids, self.b)
        bench.same("ids", bench.get(ids).astype(np.int64), want)

    def _decided(
        self, rng: np.random.Generator, logits: npt.NDArray[np.float64]
    ) -> tuple[SampleBatch, npt.NDArray[np.int64]]:
        """Settings, redrawn until no decision of any row is near a boundary."""
        for _ in range(_ATTEMPTS):
            batch = self._settings(rng)
            choices = [sample(row, batch, number) for number, row in enumerate(logits)]
            if min(choice.margin for choice in choices) > _MARGIN:
                return batch, np.array([choice.token for choice in choices], np.int64)
        raise AssertionError(f"{_ATTEMPTS} draws of settings, and each had a row that rounding could decide")

    def _settings(self, rng: np.random.Generator) -> SampleBatch:
        b = self.b
        ones, zeros = np.ones(b, np.float32), np.zeros(b, np.float32)

        def tried(name: str) -> bool:
            return self.how in (name, "all")

        def between(low: float, high: float) -> npt.NDArray[np.float32]:
            return rng.uniform(low, high, b).astype(np.float32)

        temperature = between(0.5, 1.5)
        if tried("greedy"):
            temperature[:: 1 if self.how == "greedy" else 4] = 0.0
        lengths = rng.integers(0, 12, b) if tried("penalties") else np.zeros(b, np.int64)
        ids = [rng.choice(self.v, n, replace=False) for n in lengths]
        return SampleBatch(
            temperature=temperature,
            top_k=rng.integers(1, 40, b).astype(np.int32) if tried("top_k") else np.zeros(b, np.int32),
            top_p=between(0.3, 0.95) if tried("top_p") else ones,
            min_p=between(0.01, 0.2) if tried("min_p") else zeros,
            uniform=between(0.0, 0.999),
            repetition=between(0.8, 1.5) if tried("penalties") else ones,
            presence=between(-0.5, 1.0) if tried("penalties") else zeros,
            frequency=between(-0.5, 1.0) if tried("penalties") else zeros,
            history_indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            history_ids=np.concatenate([*ids, np.empty(0, np.int64)]).astype(np.int64),
            history_counts=rng.integers(1, 5, int(lengths.sum())).astype(np.int32),
        )
