"""What attention kernels get wrong from the logits on: softmax, LSE, heads, precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from opsocket_conformance.floats import round_to
from opsocket_conformance.power.broken import fault, given, lse, on_host, output, stages
from opsocket_conformance.power.host import truncated
from opsocket_conformance.power.plain_attention import Floats, Ints, Row, Stages, State

# ---- softmax


def _tiles(self: Stages, length: int) -> Sequence[Ints]:
    return [np.arange(first, min(first + 64, length)) for first in range(0, length, 64)]


def _merged_as_they_are(self: Stages, states: Sequence[State]) -> State:
    return State(states[-1].top, sum_of(s.total for s in states), sum_of(s.acc for s in states))


def _sum_not_rescaled(self: Stages, states: Sequence[State]) -> State:
    right = Stages.merge(self, states)
    return State(right.top, sum_of(s.total for s in states), right.acc)


def sum_of(parts: Any) -> Floats:
    total: Floats = np.sum(np.stack(list(parts)), axis=0)
    return total


def _top_of_all(self: Stages, logits: Floats, unmasked: Floats, sink: Floats | None) -> Floats:
    top: Floats = np.nanmax(unmasked, axis=-1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(top), top, 0).astype(self.work)


def _no_top(self: Stages, logits: Floats, unmasked: Floats, sink: Floats | None) -> Floats:
    return np.zeros((*logits.shape[:2], 1), self.work)


def _lse_without_top(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    out, right = Stages.finish(self, row, state)
    return out, right - state.top


def _nan_where_empty(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    _, right = Stages.finish(self, row, state)
    return state.acc / state.total, right


def _one_where_empty(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    out, right = Stages.finish(self, row, state)
    return np.where(np.isneginf(right), 1, out), right


def _mean_where_empty(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    out, right = Stages.finish(self, row, state)
    mean = np.nan_to_num(row.v[:, : row.kv_len]).sum(axis=1, keepdims=True) / max(row.kv_len, 1)
    return np.where(np.isneginf(right), mean, out), right


def _exp_of_eight_bits(self: Stages, x: Floats) -> Floats:
    exact = np.exp(x)
    result: Floats = (exact * (1 + 2.0**-8 * np.sin(40 * np.where(np.isfinite(x), x, 0)))).astype(self.work)
    return result


_SOFTMAX: Final = (
    fault(
        "no max-subtraction",
        "softmax",
        "exp(s) overflows, or all of a row underflows.",
        "x=large",
        kernel=stages(top=_no_top),
    ),
    fault(
        "maximum over masked keys too",
        "softmax",
        "A masked key's logit is taken off, and all that count underflow.",
        "x=needle",
        kernel=stages(top=_top_of_all),
    ),
    fault(
        "tiles merged without rescaling",
        "softmax",
        "Sums of tiles with different maxima are added up.",
        "x=peaky",
        kernel=stages(parts=_tiles, merge=_merged_as_they_are),
    ),
    fault(
        "sum not rescaled",
        "softmax",
        "A new maximum rescales the output, not the sum.",
        "x=peaky",
        kernel=stages(parts=_tiles, merge=_sum_not_rescaled),
    ),
    fault(
        "fully masked row = 1",
        "softmax",
        "0 / 0 is caught, and becomes 1.",
        "batch=short",
        kernel=stages(finish=_one_where_empty),
    ),
    fault(
        "fully masked row = mean of V",
        "softmax",
        "A softmax over equal -1e30.",
        "batch=short",
        kernel=stages(finish=_mean_where_empty),
    ),
    fault(
        "fully masked row = NaN",
        "softmax",
        "0 / 0 is not caught.",
        "batch=short",
        kernel=stages(finish=_nan_where_empty),
    ),
    fault(
        "0 * V on masked keys",
        "softmax",
        "Probability 0 meets a NaN that was never written.",
        kernel=stages(values=lambda s, row, seen, keys: row.v[:, keys]),
    ),
    fault("exponential of 8 bits", "precision", "A table for exp.", kernel=stages(exp=_exp_of_eight_bits)),
    fault(
        "small weights skipped",
        "softmax",
        "Keys below e^-4 of the largest are left out.",
        "x=normal",
        kernel=stages(exp=lambda s, x: np.where(x < -4, 0, np.exp(x))),
    ),
    fault(
        "LSE in base 2",
        "softmax",
        "The kernel works in base 2 and hands out its own LSE.",
        "lse=1",
        result=lse(lambda plan, x: x / np.float32(np.log(2))),
    ),
    fault(
        "LSE without the maximum", "softmax", "log of the sum alone.", "lse=1", kernel=stages(finish=_lse_without_top)
    ),
    fault(
        "LSE times the scale",
        "softmax",
        "The maximum of unscaled logits is scaled late, with all else.",
        "lse=1",
        result=lse(lambda plan, x: x * np.float32(plan.request.spec.scale)),
    ),
    fault(
        "LSE +inf where nothing is seen",
        "softmax",
        "As FlashAttention 2 returns it.",
        "lse=1",
        "batch=short",
        result=lse(lambda plan, x: np.where(np.isneginf(x), np.inf, x).astype(np.float32)),
    ),
    fault(
        "LSE 0 where nothing is seen",
        "softmax",
        "The log of a sum that starts at 1.",
        "lse=1",
        "batch=short",
        result=lse(lambda plan, x: np.where(np.isneginf(x), 0, x).astype(np.float32)),
    ),
    fault(
        "LSE in bf16",
        "precision",
        "The LSE is stored in the output's type.",
        "lse=1",
        result=lse(lambda plan, x: round_to(x, "bf16")),
    ),
)

# ---- heads, precision


def _in_bf16(self: Stages, weights: Floats, values: Floats) -> Floats:
    """Sums over tiles of 16 keys, rounded to bf16 after each."""
    total = np.zeros((*weights.shape[:2], values.shape[-1]), np.float32)
    for first in range(0, weights.shape[-1], 16):
        total = round_to(total + weights[..., first : first + 16] @ values[:, first : first + 16], "bf16")
    return total


def _rounded_to(dtype: str) -> Any:
    return stages(rounded=lambda s, weights: round_to(weights, dtype))


def _by_way_of_f16(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    out, right = Stages.finish(self, row, state)
    return round_to(out, "f16"), right


def _truncated_store(self: Stages, rows: int, values: Floats, lse: Floats, out: Any, lse_out: Any) -> Any:
    return Stages.store(self, rows, truncated(values.astype(np.float64), self.spec.out_dtype), lse, out, lse_out)


def _flushed(plan: Any, out: Floats) -> Floats:
    return out if plan.request.spec.out_dtype != "f16" else np.where(np.abs(out) < 2.0**-14, np.float32(0), out)


def _last_head_copied(plan: Any, out: Floats) -> Floats:
    """Of an odd number of heads."""
    return np.concatenate([out[:, :-1], out[:, -2:-1]], axis=1) if out.shape[1] % 2 and out.shape[1] > 1 else out


def _exact_probabilities(request: Any) -> bool:
    return bool(request.spec.numerics.probabilities == "f32")


def _transposed_group(self: Stages, head: Ints) -> Ints:
    return head % self.spec.num_kv_heads


_HEADS: Final = (
    fault(
        "query heads dealt out in turn",
        "grouping",
        "KV head h % Hkv instead of h / group.",
        kernel=stages(kv_head=_transposed_group),
    ),
    fault(
        "heads in reverse",
        "grouping",
        "Heads are read from the last.",
        run=given(q=on_host(lambda q: q[:, ::-1].copy())),
    ),
    fault(
        "first KV head for all",
        "grouping",
        "The KV head's stride is 0.",
        kernel=stages(kv_head=lambda s, head: 0 * head),
    ),
    fault(
        "last query head is the one before it",
        "grouping",
        "Head groups of an even size are assumed.",
        "hq=9",
        "hq=7",
        result=output(_last_head_copied),
    ),
)

_PRECISION: Final = (
    fault("accumulation in bf16", "precision", "P V is summed in bf16.", "x=flat", kernel=stages(weigh=_in_bf16)),
    fault(
        "bf16 probabilities, undeclared",
        "precision",
        "P is rounded to bf16 where f32 is declared.",
        "x=cancel",
        "q=f32",
        where=_exact_probabilities,
        kernel=_rounded_to("bf16"),
    ),
    fault(
        "f16 probabilities, undeclared",
        "precision",
        "P is rounded to f16 where f32 is declared.",
        "q=f32",
        where=_exact_probabilities,
        kernel=_rounded_to("f16"),
    ),
    fault(
        "truncating store",
        "precision",
        "The upper half of an f32 is stored, without rounding.",
        "q=bf16",
        kernel=stages(store=_truncated_store),
    ),
    fault(
        "output by way of f16",
        "precision",
        "The output passes through f16, whatever its type.",
        "q=f32",
        "x=denormal",
        kernel=stages(finish=_by_way_of_f16),
    ),
    fault(
        "subnormal results flushed in f16",
        "precision",
        "Half-precision results below 2^-14 become 0.",
        "q=f16",
        "x=denormal",
        result=output(_flushed),
    ),
)


FAULTS: Final = (*_SOFTMAX, *_HEADS, *_PRECISION)
