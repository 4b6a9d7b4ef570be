"""Recording runs on a bench and replaying them: claims checked both ways, outputs poisoned before each replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from opsocket.operators import Array, Cache, ContractError, Graph, Plan, Reason, Unsupported
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.guard import kernel_running
from opsocket_conformance.operators.cache import under_test as caches

LEVELS: Final[Mapping[str, tuple[str, ...]]] = {
    "decode": ("decode", "uniform", "any"),
    "uniform": ("uniform", "any"),
    "mixed": ("any",),
}
"""The levels of capture that suffice for a batch: of one query each; of as many each; of any numbers."""


def record(bench: Bench, plans: Sequence[Plan], runs: Callable[[], Any], batch: str = "decode") -> tuple[Graph, Any]:
    """The graph of what `runs` runs, and what that returns; `Denied` where `supports` says that one of the plans can't
    be captured with such a batch, and a run is refused accordingly."""
    lacking = [plan for plan in plans if not _suffices(bench, plan, batch)]
    try:
        with bench.session.capture() as graph:
            result = runs()
    except (Unsupported, ContractError) as error:
        if not lacking:
            bench.fail(f"capture: claimed by supports, and refused: {error}")
            raise
        if isinstance(error, Unsupported):
            raise Denied(error.reasons) from None
        raise Denied((Reason("capture", error.argument, error.got, error.want),)) from None
    if lacking:
        bench.fail(f"capture: denied by supports for {lacking[0].request.op}, which was captured")
    support = bench.session.supports(plans[0].request)
    bench.providers["capture"], bench.tiers["capture"] = support.provider, support.tier
    return graph, result


def _suffices(bench: Bench, plan: Plan, batch: str) -> bool:
    level = bench.session.supports(plan.request).capture
    return level in LEVELS[batch] if plan.request.op == "attention" else level != "never"


def replay(bench: Bench, graph: Graph, written: Any, rows: Mapping[int, int] | None = None) -> None:
    """Replay, after every array that it must write has been poisoned."""
    poison(bench, written)
    with kernel_running("a replayed graph"):
        graph.replay(rows)


def poison(bench: Bench, written: Any) -> None:
    """NaN, or a number that no case computes, in every array among what operators are given or return."""
    for array in _flat(written):
        if not isinstance(array, Cache):
            info = bench.session.describe(array)
            fill = np.full(info.shape, 77, np.int64) if info.dtype[0] in "iu" else np.full(info.shape, np.nan)
            bench.session.write(array, fill.astype(np.float32 if fill.dtype.kind == "f" else np.int64))


def same(bench: Bench, what: str, got: Any, want: Any) -> None:
    """Two results of operators hold the same bits, caches by all of their slots."""
    for number, (ours, theirs) in enumerate(zip(_flat(got), _flat(want), strict=True)):
        if isinstance(theirs, Cache):
            everything = np.arange(theirs.spec.num_slots)
            for name, mine, other in zip(
                "kv", caches.read(bench, ours, everything), caches.read(bench, theirs, everything), strict=True
            ):
                bench.same(f"{what}: {name} of the cache, by slot", mine.view(np.uint64), other.view(np.uint64))
        else:
            bench.same_bits(f"{what}: result {number}", ours, bench.bits(theirs))


def same_rows(bench: Bench, what: str, got: Sequence[Array], want: Sequence[Array], rows: int) -> None:
    """The first rows of two results hold the same bits, and the others of `got` what they were poisoned with."""
    for number, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        leading = bench.session.leading(ours, rows)
        bench.same_bits(f"{what}: result {number}", leading, bench.bits(bench.session.leading(theirs, rows)))
        if not np.isnan(bench.session.download(ours)[rows:]).all():
            bench.fail(f"{what}: result {number} was written beyond them")


def _flat(result: Any) -> list[Any]:
    """Arrays and caches in tuples, lists and values of dicts."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, tuple | list):
        return [leaf for item in result for leaf in _flat(item)]
    return [] if result is None else [result]
