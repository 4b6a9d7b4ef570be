"""What goes wrong around the products of experts: in the order of their rows, and in the sums over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import (
    Float64,
    partly_written,
    read_as_dense,
    recomputed,
    rounded,
    stored,
    truncated,
)
from opsocket_conformance.power.orders import Int64

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


def _several(request: Request) -> bool:
    spec: Any = request.spec
    return bool(spec.top_k > 1)


# ---- moe_sort


def _by_expert(experts: Int64) -> Int64:
    return np.argsort(experts, axis=None, kind="stable")


def _summed(counts: Int64) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)])


def _placed(order: Int64) -> Int64:
    """Where each choice stands: the inverse of a permutation."""
    slots = np.empty_like(order)
    slots[order] = np.arange(len(order))
    return slots


def sort(
    *,
    given: Step = _same,
    order: Step = _by_expert,
    offsets: Step = _summed,
    rows: Step = lambda order, top_k: order // top_k,
    slots: Step = _placed,
    last: Step = lambda rows, offsets, slots: (rows, offsets, slots),
) -> Hook:
    """The right order, each step of which can be replaced."""

    def compute(plan: Any, experts: Int64) -> tuple[Int64, Int64, Int64]:
        spec = plan.request.spec
        experts = given(experts)
        sorted_ = order(experts)
        counts = np.bincount(experts.ravel(), minlength=spec.num_experts)
        found = rows(sorted_, spec.top_k), offsets(counts), slots(sorted_).reshape(experts.shape)
        changed: tuple[Int64, Int64, Int64] = last(*found)
        return changed

    return recomputed(compute)


def _sort_fault(name: str, wrong: str, run: Hook, where: Any = None) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault("moe_sort", name=f"moe_sort: {name}", category="model", wrong=wrong, run=run, **hooks)


def _last_token_first(experts: Int64) -> Int64:
    return experts.size - 1 - np.argsort(experts[::-1, ::-1], axis=None, kind="stable")


def _as_they_come(experts: Int64) -> Int64:
    """Each expert's choices in the order in which threads happened to take their places."""
    taken = np.random.default_rng(0).permutation(experts.size)
    return np.asarray(taken[np.argsort(experts.flat[taken], kind="stable")], np.int64)


def _rank_by_rank(experts: Int64) -> Int64:
    """First choices of all tokens before second ones."""
    rank, token = np.divmod(np.argsort(experts.T, axis=None, kind="stable"), max(len(experts), 1))
    return np.asarray(token * experts.shape[1] + rank, np.int64)


def _in_blocks(experts: Int64) -> Int64:
    """Each 256 choices sorted by themselves."""
    first = np.arange(experts.size) // 256
    return np.lexsort((experts.ravel(), first))


def _without_the_empty(counts: Int64) -> Int64:
    bounds = _summed(counts[counts > 0])
    return np.append(bounds, np.full(len(counts) + 1 - len(bounds), bounds[-1]))


def _without_the_last(rows: Int64, offsets: Int64, slots: Int64) -> tuple[Int64, Int64, Int64]:
    return np.where(np.arange(len(rows)) < offsets[-2], rows, 0), np.append(offsets[:-1], offsets[-2]), slots


def _nothing_for_nobody(rows: Int64, offsets: Int64, slots: Int64) -> tuple[Int64, Int64, Int64]:
    """No launch, and the offsets are what was there."""
    return rows, offsets if len(rows) else offsets + 77, slots


def _narrow(plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    session = plan.session
    return tuple(session.upload(session.download(part), "i32") for part in plan.right(*args, **kwargs))


_SORT: Final = (
    _sort_fault("the last token first", "filled from the end", sort(order=_last_token_first)),
    _sort_fault("places by atomics", "tokens of one expert in any order", sort(order=_as_they_come)),
    _sort_fault("rank by rank", "first choices before second ones", sort(order=_rank_by_rank), _several),
    _sort_fault("sorted in blocks of 256", "what one block holds, and no merge", sort(order=_in_blocks)),
    _sort_fault(
        "falling experts",
        "sorted the wrong way",
        sort(order=lambda experts: np.argsort(-experts, axis=None, kind="stable")),
    ),
    _sort_fault("not sorted", "the tokens as they came", sort(order=lambda experts: np.arange(experts.size))),
    _sort_fault("experts in a byte", "keys are 8 bits wide", sort(order=lambda experts: _by_expert(experts % 256))),
    _sort_fault(
        "experts beyond 64 in one bucket",
        "as many counters as a block has room for",
        sort(given=lambda experts: np.minimum(experts, 63)),
        lambda request: request.spec.num_experts > 64,
    ),
    _sort_fault("offsets are ends", "an inclusive sum", sort(offsets=lambda counts: np.cumsum(np.append(counts, 0)))),
    _sort_fault(
        "offsets begin at the first count", "0 twice", sort(offsets=lambda counts: np.append(0, _summed(counts)[:-1]))
    ),
    _sort_fault("counts for offsets", "never summed", sort(offsets=lambda counts: np.append(counts, counts.sum()))),
    _sort_fault("last offset left out", "E numbers", sort(offsets=lambda counts: np.append(_summed(counts)[:-1], 0))),
    _sort_fault("empty experts left out", "as many offsets as were chosen", sort(offsets=_without_the_empty)),
    _sort_fault(
        "experts aligned to 16 rows",
        "as tiles of products would have it",
        sort(offsets=lambda counts: _summed(-(-counts // 16) * 16)),
    ),
    _sort_fault("the last expert's rows lost", "E - 1", sort(last=_without_the_last)),
    _sort_fault("rows are choices", "not divided by top_k", sort(rows=lambda order, top_k: order), _several),
    _sort_fault("rows are ranks", "the remainder", sort(rows=lambda order, top_k: order % top_k)),
    _sort_fault("rows in the order of tokens", "never sorted", sort(rows=lambda order, top_k: np.sort(order) // top_k)),
    _sort_fault("slots are choices", "the order instead of its inverse", sort(slots=_same)),
    _sort_fault(
        "slots within the expert",
        "no offset added",
        sort(last=lambda r, o, s: (r, o, s - o[np.searchsorted(o, s, side="right") - 1])),
    ),
    _sort_fault(
        "slots by rank",
        "[top_k, T] read as [T, top_k]",
        sort(last=lambda rows, offsets, slots: (rows, offsets, slots.T.reshape(slots.shape))),
        _several,
    ),
    _sort_fault("no offsets without tokens", "nothing is launched", sort(last=_nothing_for_nobody)),
    _sort_fault("in 32 bits", "the kernel's own integers come back", _narrow),
)


# ---- moe_combine


def _taken(x: Float64, slots: Int64) -> Float64:
    return x[slots]


def combine(
    *,
    weigh: Step = _same,
    take: Step = _taken,
    product: Step = lambda weights, rows, dtype: weights[..., None] * rows,
    total: Step = lambda terms, dtype: terms.sum(axis=1),
) -> Hook:
    """The right weighted sum in float64, each step of which can be replaced."""

    def compute(plan: Any, x: Float64, slots: Int64, weights: Float64) -> Float64:
        dtype = plan.request.spec.dtype
        return np.asarray(total(product(weigh(weights, slots), take(x, slots), dtype), dtype))

    return recomputed(compute)


def _combine_fault(name: str, wrong: str, run: Hook, where: Any = None, *telling: str) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault(
        "moe_combine", name=f"moe_combine: {name}", category="model", wrong=wrong, run=run, telling=telling, **hooks
    )


def _in_16_bits(request: Request) -> bool:
    return getattr(request.spec, "dtype", "") != "f32"


def _beyond(choices: int) -> Callable[[Request], bool]:
    return lambda request: getattr(request.spec, "top_k", 0) > choices


def _running(terms: Float64, dtype: str) -> Float64:
    total = np.zeros_like(terms[:, 0])
    for choice in range(terms.shape[1]):
        total = rounded(total + terms[:, choice], dtype)
    return total


def _in_order_of_slots(x: Float64, slots: Int64) -> Float64:
    return x[np.sort(slots, axis=1)]


def _once(weights: Float64, slots: Int64) -> Float64:
    """A row that is named again has been given away."""
    kept = np.zeros(weights.size, bool)
    kept[np.unique(slots, return_index=True)[1]] = True
    return np.where(kept.reshape(weights.shape), weights, 0.0)


def _not_cleared(plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Terms are added to what the output held."""
    session, out = plan.session, kwargs.get("out")
    held = 0.0 if out is None else session.download(out).astype(np.float64)
    result = plan.right(*args, **kwargs)
    return stored(session, result, session.download(result).astype(np.float64) + held)


_COMBINE: Final = (
    _combine_fault("weights ignored", "a plain sum", combine(weigh=lambda w, slots: np.ones_like(w))),
    _combine_fault("mean", "divided by top_k", combine(total=lambda terms, dtype: terms.mean(axis=1)), _several),
    _combine_fault("first choice only", "no loop", combine(total=lambda terms, dtype: terms[:, 0]), _several),
    _combine_fault("last choice left out", "top_k - 1", combine(total=lambda t, dtype: t[:, :-1].sum(axis=1))),
    _combine_fault(
        "choices beyond 4 left out",
        "unrolled for four",
        combine(total=lambda terms, dtype: terms[:, :4].sum(axis=1)),
        _beyond(4),
    ),
    _combine_fault(
        "largest weight only",
        "an argmax",
        combine(weigh=lambda w, slots: np.where(w == w.max(axis=1, keepdims=True), w, 0.0)),
        _several,
    ),
    _combine_fault("rows in order of slots", "read in order, weighted in another", combine(take=_in_order_of_slots)),
    _combine_fault(
        "weights in falling order", "sorted again", combine(weigh=lambda w, slots: -np.sort(-w, axis=1)), _several
    ),
    _combine_fault(
        "weights by rank",
        "[top_k, T] read as [T, top_k]",
        combine(weigh=lambda w, slots: w.T.reshape(w.shape)),
        _several,
    ),
    _combine_fault(
        "the neighbour's weights", "the row's index is one off", combine(weigh=lambda w, s: np.roll(w, 1, axis=0))
    ),
    _combine_fault(
        "renormalized",
        "weights that sum to 1",
        combine(weigh=lambda w, slots: w / np.where((total := w.sum(axis=1, keepdims=True)) == 0, 1.0, total)),
    ),
    _combine_fault("negative weights are 0", "as of probabilities", combine(weigh=lambda w, s: np.maximum(w, 0.0))),
    _combine_fault(
        "small weights are 0",
        "a threshold of 2^-6",
        combine(weigh=lambda w, slots: np.where(np.abs(w) < 2.0**-6, 0.0, w)),
        None,
        "x=tiny",
    ),
    _combine_fault("weights in bf16", "rounded before the product", combine(weigh=lambda w, s: rounded(w, "bf16"))),
    _combine_fault("weights in f16", "rounded before the product", combine(weigh=lambda w, s: rounded(w, "f16"))),
    _combine_fault(
        "products in 16 bits",
        "each rounded to the rows' type",
        combine(product=lambda w, rows, dtype: rounded(w[..., None] * rows, dtype)),
        _in_16_bits,
    ),
    _combine_fault("sum in 16 bits", "kept in the rows' type", combine(total=_running), _in_16_bits),
    _combine_fault(
        "sum in bf16", "stored through bf16", combine(total=lambda t, dtype: rounded(t.sum(axis=1), "bf16"))
    ),
    _combine_fault(
        "truncating store",
        "the upper half of the f32",
        combine(total=lambda terms, dtype: truncated(terms.sum(axis=1), dtype)),
    ),
    _combine_fault("slot + 1", "counted from 1", combine(take=lambda x, slots: x[(slots + 1) % len(x)])),
    _combine_fault(
        "rows as they stand",
        "the slots are never read",
        combine(take=lambda x, slots: x[np.arange(slots.size).reshape(slots.shape) % len(x)]),
    ),
    _combine_fault(
        "clamped before the last choice's row",
        "min(slot, T top_k - 2)",
        combine(take=lambda x, slots: x[np.minimum(slots, max(slots.size - 2, 0))]),
    ),
    _combine_fault("a row given once", "a scatter of rows to tokens", combine(weigh=_once), None, "slots=shared"),
    _combine_fault(
        "NaN becomes 0",
        "a maximum with what does not count",
        combine(take=lambda x, slots: np.nan_to_num(x[slots], nan=0.0, posinf=np.inf, neginf=-np.inf)),
        None,
        "x=special",
    ),
    _combine_fault("output not cleared", "terms are added to what was there", _not_cleared),
    _combine_fault("rows beyond 2 not written", "a launch for two tokens", partly_written(lambda y: y[2:])),
    _combine_fault(
        "last columns not written",
        "a vector loop of 32 without its tail",
        partly_written(lambda y: y[:, y.shape[1] // 32 * 32 :]),
    ),
    _combine_fault(
        "strided rows read as dense", "the row stride is taken for the width", read_as_dense, None, "strided=1"
    ),
)

FAULTS: Final[tuple[Fault, ...]] = _SORT + _COMBINE
