"""A result depends on its own row: not on who else is in the batch, on how many there are, or on the time of day.

Alone and in a batch, a row may be summed in another order, and no more than that: two correct results are at most E
apart (docs/tolerance.md). Two readings see what hides below that in a 16-bit type.

- How many elements differ. Before their last rounding two correct results are at most 2T apart, so that they round to
  different numbers with probability at most 2T / ulp; the count may exceed its expectation by six standard deviations.
- A gain. The matched filter for a factor on everything, the smallest factor for which the filter still earns credit:
  with a few thousand elements that is one part in a thousand, where a bf16 ulp is eight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import Bounds, ContractError, MatmulSpec, Request, RMSNormSpec
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.findings import Findings, Float64
from opsocket_conformance.floats import round_to, roundoff
from opsocket_conformance.operators import rms_norm
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.oracle import attention
from opsocket_conformance.operators.attention.scene import build, fill
from opsocket_conformance.operators.attention.tolerance import tolerance
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.tolerance import Bound
from opsocket_conformance.verdicts import Filtered

Int64 = npt.NDArray[np.int64]

_SIGMAS: Final = 6.0
_RERUNS: Final = 3
_TRIAL_GAIN: Final = 0.01


@dataclass(frozen=True)
class BatchInvariant(Check):
    """op: a name in `ROWS`. dtype: of activations, output and cache. w: weight format of a matmul, kv: cache
    format ("": dtype). m: rows of the batch."""

    name: ClassVar[str] = "batch_invariant"
    shown: ClassVar[tuple[str, ...]] = ("op", "dtype")

    op: str = "attention"
    dtype: str = "bf16"
    w: str = ""
    kv: str = ""
    m: int = 37

    def __post_init__(self) -> None:
        if self.op not in ROWS:
            raise ContractError("case.op", f"one of {sorted(ROWS)}", repr(self.op))

    @property
    def operator(self) -> str:
        return self.op

    def features(self) -> frozenset[str]:
        more = {
            "attention": {f"cache:{self.kv or 'same'}"},
            "matmul": {f"weight:{self.w or self.dtype}"},
            "rms_norm": set[str](),
        }
        return frozenset({f"op:{self.op}", f"dtype:{self.dtype}"} | more[self.op])

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        ROWS[self.op](bench, rng, self)


def agree(bench: Bench, what: str, got: Float64, other: Float64, bound: Bound, dtype: str) -> None:
    """Two results of one question are within `bound` of each other, round alike but for elements near a boundary, and
    neither is the other times a factor."""
    if got.shape != other.shape:
        bench.fail(f"{what}: shape {list(got.shape)}, wanted {list(other.shape)}")
        return
    # E's rounding part is 2 u |ref|, and ulp(x) is u |x| or more; subnormals are as far apart as `slack` says.
    ulp = np.maximum(roundoff(dtype) * np.abs(other), bound.slack)
    chance = np.minimum(bound.inner / ulp, 1.0)
    expected, spread = float(chance.sum()), float(np.sqrt((chance * (1 - chance)).sum()))
    differ = (got != other) & ~(np.isnan(got) & np.isnan(other))
    most = expected + _SIGMAS * spread + _SIGMAS
    if int(differ.sum()) > most:
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        bench.fail(
            f"{what}: {int(differ.sum())} of {differ.size} elements differ, where other orders of summation explain at "
            f"most {most:.0f}; [{', '.join(map(str, at))}] is {got[at]:.9g} and {other[at]:.9g}"
        )
    excess = differ & (np.abs(got - other) > bound.total + bound.slack)
    if excess.any():
        at = tuple(int(i) for i in np.argwhere(excess)[0])
        bench.fail(f"{what}[{', '.join(map(str, at))}]: {got[at]:.9g} and {other[at]:.9g}, further apart than E allows")
    trial = Findings()
    trial.read_filter("", other, other, other * (1 + _TRIAL_GAIN), bound)
    for reading in trial.filters.values():  # none where all is 0
        gain = _TRIAL_GAIN * reading.noise / (0.9 * Filtered.CREDIT_BELOW)
        bench.read_filter(f"gain, {what}", got, other, other * (1 + gain), bound)


def _rerun(bench: Bench, what: str, run: Callable[[], Float64], first: Float64, bound: Bound, dtype: str) -> None:
    for number in range(_RERUNS):
        agree(bench, f"{what}, run {number + 2} compared with run 1", run(), first, bound, dtype)


def _attention(bench: Bench, rng: np.random.Generator, check: BatchInvariant) -> None:
    """Requests of a batch, each alone, in another order, and each twice."""
    scene = build(Attention(q=check.dtype, kv=check.kv, batch="mixed", x="peaky"), rng)
    bench.plan(scene.request, scene.batch)
    request = replace(scene.request, bounds=Bounds())  # of any number of rows
    kv, keys, values = fill(bench, scene)
    problem = scene.problem(keys, values)
    want, lse = attention(problem)
    bound = tolerance(problem, want, lse).out
    indptr, count = np.asarray(scene.batch.q_indptr, np.int64), len(scene.batch.kv_lens)

    def run(requests: Int64) -> Float64:
        """Rows of a batch of these requests of the scene, in this order."""
        batch = scene.batch
        rows = _rows(indptr, requests)
        part = replace(
            batch,
            q_indptr=np.concatenate([[0], np.cumsum(np.diff(indptr)[requests])]).astype(np.int32),
            kv_lens=np.asarray(batch.kv_lens)[requests],
            block_table=np.asarray(batch.block_table)[requests],
            q_start=None if batch.q_start is None else np.asarray(batch.q_start)[requests],
        )
        out, _ = bench.run(bench.plan(request, part), bench.put("q", scene.q[rows], check.dtype), kv)
        return bench.get(out)

    everyone = np.arange(count)
    whole = run(everyone)
    bench.compare("out of the batch", whole, want, bound)
    _rerun(bench, "out", lambda: run(everyone), whole, bound, check.dtype)
    alone = [np.array([number]) for number in everyone if indptr[number] < indptr[number + 1]]
    pieces = [run(request) for request in alone]
    rows = np.concatenate([_rows(indptr, request) for request in alone])
    part = _part(bound, rows)
    agree(bench, "each request alone and in the batch", np.concatenate(pieces), whole[rows], part, check.dtype)
    turned = rng.permutation(count)
    rows = _rows(indptr, turned)
    agree(bench, "the batch in another order", run(turned), whole[rows], _part(bound, rows), check.dtype)
    several = np.concatenate([everyone] * 3)
    rows = _rows(indptr, several)
    agree(bench, "the batch three times over", run(several), whole[rows], _part(bound, rows), check.dtype)


def _rows(indptr: Int64, requests: Int64) -> Int64:
    parts = [np.arange(indptr[number], indptr[number + 1]) for number in requests]
    return np.concatenate([*parts, np.empty(0, np.int64)])


def _part(bound: Bound, rows: Int64) -> Bound:
    return Bound(bound.rounding[rows], bound.inner[rows], bound.slack)


def _matmul(bench: Bench, rng: np.random.Generator, check: BatchInvariant) -> None:
    """Rows of x, each alone and in batches of several sizes."""
    w, n, k = check.w or check.dtype, 136, 512
    fmt, spec = get_format(w), MatmulSpec(w, n, k, check.dtype, check.dtype)
    plan = bench.plan(Request(spec))
    tensors = random_weight(rng, fmt, n, k)
    packed = bench.prepare(plan, tensors)
    x = activations(rng, "normal", check.m, k, check.dtype)
    want, bound = expect(fmt, x, dequantize(fmt, tensors, n, k), None, check.dtype, spec.numerics)

    def run(first: int, last: int) -> Float64:
        return bench.get(bench.run(plan, bench.put("x", x[first:last], check.dtype), packed))

    _row_by_row(bench, "y", run, want, bound, check)


def _norm(bench: Bench, rng: np.random.Generator, check: BatchInvariant) -> None:
    spec = RMSNormSpec(576, 1e-5, check.dtype)
    plan = bench.plan(Request(spec))
    x = round_to(rng.standard_normal((check.m, 576)), check.dtype)
    values = (1 + 0.3 * rng.standard_normal(576)).astype(np.float32)
    weight = bench.put("weight", values)
    want = rms_norm.rms_norm(x.astype(np.float64), values.astype(np.float64), spec.eps)

    def run(first: int, last: int) -> Float64:
        return bench.get(bench.run(plan, bench.put("x", x[first:last], check.dtype), weight))

    _row_by_row(bench, "y", run, want, rms_norm.tolerance(want, 576, check.dtype), check)


def _row_by_row(
    bench: Bench, what: str, run: Callable[[int, int], Float64], want: Float64, bound: Bound, check: BatchInvariant
) -> None:
    whole = run(0, check.m)
    bench.compare(f"{what} of the batch", whole, want, bound)
    _rerun(bench, what, lambda: run(0, check.m), whole, bound, check.dtype)
    for size in (1, 2, 5, 16):
        if size >= check.m:
            continue
        pieces = [run(first, min(first + size, check.m)) for first in range(0, check.m, size)]
        together = np.concatenate(pieces)
        agree(bench, f"{what} of {size} rows at a time and of {check.m}", together, whole, bound, check.dtype)


ROWS: Final[Mapping[str, Callable[[Bench, np.random.Generator, BatchInvariant], None]]] = {
    "attention": _attention,
    "matmul": _matmul,
    "rms_norm": _norm,
}
"""By operator: what is a row, and who else may be in its batch."""
