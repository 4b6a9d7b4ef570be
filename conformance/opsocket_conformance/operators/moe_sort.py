"""The choices of all tokens sorted by expert: integers, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    MoESortSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.guard import judge_only

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MoESort(Check):
    """t: tokens. experts, k: as in `MoESortSpec`. x: "normal": distinct experts of each token; "same": all tokens chose
    the same; "first", "last": those of the lowest numbers, of the highest; "falling": each token those before the ones
    of the token before it; "twice": any, one of them by two choices of each token."""

    name: ClassVar[str] = "moe_sort"
    shown: ClassVar[tuple[str, ...]] = ("t", "experts", "k")

    t: int = 7
    experts: int = 23
    k: int = 4
    x: str = "normal"

    @property
    def operator(self) -> str:
        return "moe_sort"

    def features(self) -> frozenset[str]:
        return frozenset({"op:moe_sort"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(MoESortSpec(self.experts, self.k)))
        experts = self._chosen(rng)
        found = bench.run(plan, bench.put("experts", experts))
        for name, part in zip(("rows", "expert_offsets", "slots"), found, strict=True):
            if (dtype := bench.session.describe(part).dtype) != "i64":
                bench.fail(f"{name}: dtype {dtype}, wanted i64")
        rows, offsets, slots = (bench.get(part).astype(np.int64) for part in found)
        want_rows, want_offsets, want_slots = moe_sort(experts, self.experts)
        bench.same("rows", rows, want_rows)
        bench.same("expert_offsets", offsets, want_offsets)
        if self.x == "twice" and slots.shape == want_slots.shape:
            # Two choices of one expert by one token are one row twice: nothing says which of them comes first.
            slots = np.take_along_axis(slots, np.lexsort((slots, experts)), 1)
            want_slots = np.take_along_axis(want_slots, np.lexsort((want_slots, experts)), 1)
        bench.same("slots", slots, want_slots)

    def _chosen(self, rng: np.random.Generator) -> Int64:
        """[T, k]"""
        everyone = np.broadcast_to(np.arange(self.experts), (self.t, self.experts))
        drawn = rng.permuted(everyone, axis=1)[:, : self.k]
        if self.x == "same":
            drawn[:] = drawn[:1]
        if self.x in ("first", "last"):
            drawn = rng.permuted(everyone[:, : self.k], axis=1)
            drawn += self.experts - self.k if self.x == "last" else 0
        if self.x == "falling":
            drawn = np.arange(self.t * self.k)[::-1].reshape(self.t, self.k) % self.experts
        if self.x == "twice":
            drawn = rng.integers(0, self.experts, (self.t, self.k))
            drawn[:, -1] = drawn[:, 0]
        return np.ascontiguousarray(drawn, np.int64)


@judge_only
def moe_sort(experts: Int64, num_experts: int) -> tuple[Int64, Int64, Int64]:
    """experts i64[T, top_k] -> rows i64[T * top_k], expert_offsets i64[E + 1], slots i64[T, top_k]; choices of one
    expert stay in their order."""
    order = np.argsort(experts, axis=None, kind="stable")
    counts = np.bincount(experts.ravel(), minlength=num_experts)
    slots = np.empty_like(experts)
    slots.flat[order] = np.arange(experts.size)
    return order // experts.shape[1], np.concatenate([[0], np.cumsum(counts)]), slots


def cases() -> Iterator[Case]:
    for experts, k in ((23, 4), (8, 2), (128, 8), (300, 4), (8, 8), (3, 1), (1, 1)):
        for t in (0, 1, 7, 67):
            yield Case(MoESort(t, experts, k), 0, "smoke" if (t, experts) == (7, 23) else "default")
    for t, experts, k in ((513, 128, 8), (5003, 8, 2), (4999, 128, 8), (5000, 300, 1)):
        yield Case(MoESort(t, experts, k))
    for x in ("same", "first", "last", "falling", "twice"):
        for t, experts, k in ((7, 23, 4), (67, 8, 1), (513, 128, 8), (67, 300, 4), (9, 8, 8)):
            if k > 1 or x != "twice":
                yield Case(MoESort(t, experts, k, x))
