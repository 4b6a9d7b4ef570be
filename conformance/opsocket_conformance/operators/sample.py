"""From logits to a token id by a given uniform number: exact, on logits where rounding can't decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Request,
    SampleBatch,
    SampleSpec,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES

MARGIN = 1e-5
"""In probability: decisions nearer than this to a boundary are asked of nobody."""

_ATTEMPTS = 200


@dataclass(frozen=True)
class Sample(Check):
    """b rows of v logits, each with settings of its own. how: the setting that is tried: "plain", "greedy", "top_k",
    "top_p", "min_p", "penalties", or "all" together; "history": half of all tokens, the likely ones among them, are in
    it, and every other row is greedy."""

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
            batch = self._settings(rng, logits)
            choices = [sample(row, batch, number) for number, row in enumerate(logits)]
            if min(choice.margin for choice in choices) > MARGIN:
                return batch, np.array([choice.token for choice in choices], np.int64)
        raise AssertionError(f"{_ATTEMPTS} draws of settings, and each had a row that rounding could decide")

    def _settings(self, rng: np.random.Generator, logits: Float64) -> SampleBatch:
        b = self.b
        if self.how == "history":
            return self._long_history(rng, logits)
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

    def _long_history(self, rng: np.random.Generator, logits: Float64) -> SampleBatch:
        half = self.v // 2
        likely = np.argsort(-logits, axis=-1)[:, :8]
        ids = np.stack([np.union1d(rng.choice(self.v, half, replace=False), row)[:half] for row in likely])
        ones, zeros = np.ones(self.b, np.float32), np.zeros(self.b, np.float32)

        def between(low: float, high: float) -> npt.NDArray[np.float32]:
            return rng.uniform(low, high, self.b).astype(np.float32)

        return SampleBatch(
            temperature=np.where(np.arange(self.b) % 2 == 0, 0.0, between(0.8, 2.0)).astype(np.float32),
            top_k=np.zeros(self.b, np.int32),
            top_p=ones,
            min_p=zeros,
            uniform=between(0.0, 0.999),
            repetition=between(1.2, 2.0),
            presence=between(-0.5, 1.0),
            frequency=between(-0.3, 0.6),
            history_indptr=np.arange(self.b + 1) * half,
            history_ids=ids.ravel().astype(np.int64),
            history_counts=rng.integers(1, 5, self.b * half).astype(np.int32),
        )


@dataclass(frozen=True)
class Choice:
    """margin: how far, in probability, the nearest other decision was; 0 means that rounding could decide."""

    token: int
    margin: float


@judge_only
def sample(logits: Float64, batch: SampleBatch, row: int) -> Choice:
    """The token of one request; logits f64[V]."""
    logits = _penalized(logits, batch, row)
    temperature = float(batch.temperature[row])
    if temperature == 0:
        order = np.argsort(-logits, kind="stable")
        gap = logits[order[0]] - logits[order[1]] if len(order) > 1 else 1.0
        return Choice(int(order[0]), float(gap) if gap else 1.0)
    scaled = logits / temperature
    weights = np.exp(scaled - scaled.max())
    probability = weights / weights.sum()
    order = np.argsort(-probability, kind="stable")
    kept = probability[order]
    margins = [1.0]

    top_k = int(batch.top_k[row])
    if 0 < top_k < len(kept):
        kept = kept[:top_k]
    top_p = float(batch.top_p[row])
    if top_p < 1:
        mass = np.cumsum(kept) / kept.sum()
        margins.append(float(np.abs(mass - top_p).min()))
        kept = kept[: int(np.searchsorted(mass, top_p, side="left")) + 1]
    min_p = float(batch.min_p[row])
    if min_p > 0:
        share = kept / kept[0]
        margins.append(float(np.abs(share - min_p).min()))
        kept = kept[share >= min_p]
    mass = np.cumsum(kept) / kept.sum()
    uniform = float(batch.uniform[row])
    margins.append(float(np.abs(mass - uniform)[:-1].min(initial=1.0)))
    place = min(int(np.searchsorted(mass, uniform, side="right")), len(kept) - 1)
    return Choice(int(order[place]), min(margins))


def _penalized(logits: Float64, batch: SampleBatch, row: int) -> Float64:
    logits = logits.copy()
    first, last = (int(i) for i in batch.history_indptr[row : row + 2])
    ids, counts = batch.history_ids[first:last], batch.history_counts[first:last]
    repetition = float(batch.repetition[row])
    seen = logits[ids]
    seen = np.where(seen > 0, seen / repetition, seen * repetition)
    logits[ids] = seen - float(batch.frequency[row]) * counts - float(batch.presence[row])
    return logits


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for how in ("plain", "greedy", "top_k", "top_p", "min_p", "penalties", "all"):
            yield Case(Sample(dtype=dtype, how=how), 0, "smoke" if how == "all" else "default")
        for b, v in ((9, 211), (23, 97), (4, 1031)):
            yield Case(Sample(b, v, dtype, "history"))
        for b, v in ((21, 307), (17, 61)):
            yield Case(Sample(b, v, dtype))
        for v in (4099, 40009):
            for how in ("top_k", "greedy"):
                yield Case(Sample(5, v, dtype, how))
        for draw in range(1, 6):
            yield Case(Sample(23, 97, dtype), draw)
