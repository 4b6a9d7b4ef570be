"""What goes wrong where partial attention results are merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, recomputed, rounded

Merged = tuple[Float64, Float64]
Merge = Callable[[Float64, Float64], Merged]


def merged(
    outs: Float64,
    lses: Float64,
    *,
    exp: Callable[[Float64], Float64] = np.exp,
    shift: Callable[[Float64], Float64] = lambda lses: lses.max(axis=0),
    weigh: Callable[[Float64], Float64] = lambda weights: weights,
    log: Callable[[Float64], Float64] = np.log,
) -> Merged:
    """The right merge of outs f64[S, T, H, D] by lses f64[S, T, H], each step of which can be replaced."""
    top = shift(lses)
    base = np.where(np.isfinite(top), top, 0.0)
    weights = weigh(exp(lses - base))
    total = weights.sum(axis=0)
    seen = (lses != -np.inf)[..., None]
    mixed = np.where(seen, outs * weights[..., None], 0.0).sum(axis=0)
    out = mixed / np.where(total > 0, total, 1.0)[..., None]
    return out, np.where(total > 0, log(total) + base, -np.inf)


def _kernel(merge: Merge) -> Hook:
    return recomputed(lambda plan, outs, lses: merge(outs, lses))


right: Final = _kernel(merged)
"""The right merge, in NumPy."""


def _given_others(outs: Any = None, lses: Any = None) -> Hook:
    """The right merge of changed parts."""
    return _kernel(lambda o, s: merged(o if outs is None else outs(o), s if lses is None else lses(s)))


def _without_a_maximum(outs: Float64, lses: Float64) -> Merged:
    weights = np.exp(lses.astype(np.float32)).astype(np.float64)
    total = weights.sum(axis=0)
    out = np.where((lses != -np.inf)[..., None], outs * weights[..., None], 0.0).sum(axis=0) / total[..., None]
    return np.where((total > 0)[..., None], out, 0.0), np.log(total)


def _infinities_meet(outs: Float64, lses: Float64) -> Merged:
    weights = np.exp(lses - lses.max(axis=0))
    total = weights.sum(axis=0)
    seen = np.where((weights > 0)[..., None], outs, 0.0)
    return (weights[..., None] * seen).sum(axis=0) / total[..., None], np.log(total) + lses.max(axis=0)


def _nothing_times_nan(outs: Float64, lses: Float64) -> Merged:
    out, lse = merged(np.where(np.isnan(outs), 0.0, outs), lses)
    poisoned = np.isnan(outs).any(axis=0) & (lse != -np.inf)[..., None]
    return np.where(poisoned, np.nan, out), lse


def _one_after_another(outs: Float64, lses: Float64, dtype: str) -> Merged:
    out, lse = outs[0], lses[0]
    for part, part_lse in zip(outs[1:], lses[1:], strict=True):
        out, lse = merged(np.stack([out, part]), np.stack([lse, part_lse]))
        out = rounded(out, dtype)
    return np.where((lse != -np.inf)[..., None], out, 0.0), lse


def _unnormalized(outs: Float64, lses: Float64) -> Merged:
    out, lse = merged(outs, lses)
    top = lses.max(axis=0)
    share = np.where(lse > -np.inf, np.exp(lse - np.where(np.isfinite(top), top, 0.0)), 1.0)
    return out * share[..., None], lse


def _with_empty_rows(out: float, lse: float) -> Hook:
    def merge(outs: Float64, lses: Float64) -> Merged:
        right_out, right_lse = merged(outs, lses)
        nothing = right_lse == -np.inf
        return np.where(nothing[..., None], out, right_out), np.where(nothing, lse, right_lse)

    return _kernel(merge)


def _lse_of(change: Callable[[Float64, Float64], Float64]) -> Hook:
    def merge(outs: Float64, lses: Float64) -> Merged:
        out, lse = merged(outs, lses)
        return out, np.where(lse > -np.inf, change(lse, lses), lse)

    return _kernel(merge)


def _fault(name: str, wrong: str, run: Hook) -> Fault:
    return Fault("merge_states", name=name, category="merge", wrong=wrong, run=run)


FAULTS: Final[tuple[Fault, ...]] = (
    _fault(
        "merge: weights in base 2",
        "exp2 of natural LSEs, as if the parts came from a kernel that works in base 2",
        _kernel(lambda outs, lses: merged(outs, lses, exp=np.exp2, log=np.log2)),
    ),
    _fault("merge: LSE in base 2", "the merged LSE is returned as log2", _lse_of(lambda lse, _: lse / np.log(2))),
    _fault("merge: no maximum", "exp of the LSEs as they are: it overflows", _kernel(_without_a_maximum)),
    _fault("merge: -inf minus -inf", "a row that saw no key in any part gives NaN", _kernel(_infinities_meet)),
    _fault("merge: zero times NaN", "a part of weight 0 is multiplied in all the same", _kernel(_nothing_times_nan)),
    _fault("merge: not normalized", "the weights are never divided by their sum", _kernel(_unnormalized)),
    _fault("merge: LSE of the largest part", "max instead of logsumexp", _lse_of(lambda lse, all: all.max(axis=0))),
    _fault("merge: LSE of the first part", "the first part's LSE is returned", _lse_of(lambda lse, all: all[0])),
    _fault(
        "merge: empty rows keep NaN", "a row that saw no key gets NaN instead of 0", _with_empty_rows(np.nan, -np.inf)
    ),
    _fault("merge: empty rows with LSE +inf", "as FlashAttention-2 marks them", _with_empty_rows(0.0, np.inf)),
    _fault("merge: empty rows with LSE 0", "log of a sum that was set to 1", _with_empty_rows(0.0, 0.0)),
    _fault(
        "merge: last part dropped",
        "a loop over S - 1 parts",
        _kernel(lambda outs, lses: merged(outs[: max(len(outs) - 1, 1)], lses[: max(len(lses) - 1, 1)])),
    ),
    _fault(
        "merge: parts beyond 8 dropped",
        "a fixed number of parts per block of threads",
        _kernel(lambda outs, lses: merged(outs[:8], lses[:8])),
    ),
    _fault(
        "merge: LSEs of the neighbour part",
        "parts and LSEs are counted from different ends",
        _given_others(lses=lambda lses: lses[::-1]),
    ),
    _fault(
        "merge: LSEs of the neighbour head",
        "the head's stride is one off",
        _given_others(lses=lambda lses: np.roll(lses, 1, axis=2)),
    ),
    _fault(
        "merge: LSEs of one head for all",
        "one weight for each row",
        _given_others(lses=lambda lses: np.repeat(lses[..., :1], lses.shape[-1], axis=-1)),
    ),
    _fault(
        "merge: plain mean",
        "the parts are averaged",
        _kernel(lambda outs, lses: (merged(outs, np.where(lses > -np.inf, 0.0, lses))[0], merged(outs, lses)[1])),
    ),
    _fault(
        "merge: weights in bf16",
        "the weights are rounded to bf16 before they meet the parts",
        _kernel(lambda outs, lses: merged(outs, lses, weigh=lambda weights: rounded(weights, "bf16"))),
    ),
    _fault(
        "merge: LSEs in bf16",
        "the parts' LSEs pass through a 16-bit buffer",
        _given_others(lses=lambda lses: rounded(lses, "bf16")),
    ),
    _fault(
        "merge: accumulated in bf16",
        "the running output is kept in bf16 from part to part",
        _kernel(lambda outs, lses: _one_after_another(outs, lses, "bf16")),
    ),
    _fault(
        "merge: accumulated in f16",
        "the running output is kept in f16 from part to part",
        _kernel(lambda outs, lses: _one_after_another(outs, lses, "f16")),
    ),
    _fault(
        "merge: small shares cut off",
        "parts 5 below the largest LSE are left out",
        _given_others(lses=lambda lses: np.where(lses < lses.max(axis=0) - 5, -np.inf, lses)),
    ),
    _fault(
        "merge: weights 1 % off",
        "an exponential by a short polynomial",
        _kernel(lambda outs, lses: merged(outs, lses, exp=lambda x: np.exp(x) * (1 + 0.01 * np.tanh(-x)))),
    ),
)
