"""One token per request by a given uniform number, without a sort.

Every rule keeps a prefix of the tokens in falling order, so all that is needed is where in that order a count or a mass
is reached: the largest threshold above which there is as much, found digit by digit. Masses are integers, 2^40 for the
most probable token: their sums are exact, so that they are the same in every order, and no two passes disagree.

Three launches: penalties and the largest logit; the total mass, and a list of the likely tokens; the choice, from that
list alone where it holds what the request asks for, as it does but for flat distributions.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import SampleBatch, SamplePlan, SampleSpec
from opsocket_triton.cache.tables import DeviceTable
from opsocket_triton.functions import exp_exact
from opsocket_triton.launch import launch
from opsocket_triton.model.order import index_of, key_of, order_of, value_of

_BLOCK = 4096
_LIKELY = 4096
"""Places for likely tokens, of which a row may have more: then the choice is made from all."""
_SETTINGS = ("temperature", "top_p", "min_p", "uniform", "repetition", "presence", "frequency", "top_k")


@triton.jit
def mark_history(table, counts, CLEAR: tl.constexpr, BLOCK: tl.constexpr):
    """counts[place] = 1 + count of each entry of table i64[N + 1, 2], (place, 1 + count); CLEAR: 0 again."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = entry < tl.load(table)
    place = tl.load(table + 2 + 2 * entry, mask=inside, other=0)
    count = tl.load(table + 3 + 2 * entry, mask=inside, other=0)
    tl.store(counts + place, 0 if CLEAR else count.to(tl.int32), mask=inside)


@triton.jit
def penalize_rows(
    logits, counts, settings, orders, largest, likely, stride, room, behind, width, splits, PENALTIES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """orders i32[r, :width]: logits of row r = program 0 and columns of block program 1, less what their history costs.

    behind: where the columns of a row of counts and orders end, and its likely tokens begin. largest i64[B, splits]:
    key of each block's largest. likely i32[B]: set to 0. counts: see `mark_history`.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    at = split * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(logits + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    if PENALTIES:
        count = tl.load(counts + row * behind + at, mask=inside, other=0)
        repetition = tl.load(settings + row * 8 + 4)
        seen = tl.where(x > 0.0, tl.math.div_rn(x, repetition), x * repetition)
        seen -= tl.load(settings + row * 8 + 6) * (count - 1).to(tl.float32)
        seen -= tl.load(settings + row * 8 + 5)
        x = tl.where(count > 0, seen, x)
    order = tl.where(inside, order_of(x), -0x80000000)
    tl.store(orders + row * room + at, order, mask=inside)
    best = tl.max(order, 0)
    first = tl.min(tl.where(order == best, at, 0x7FFFFFFF), 0)
    tl.store(largest + row * splits + split, key_of(best, first))
    tl.store(likely + row, 0, mask=split == 0)


@triton.jit
def list_likely(
    orders, weights, settings, largest, likely, indices, masses, room, behind, width, splits, SPLITS: tl.constexpr,
    LIKELY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """weights f32[r, :width]: probabilities over the largest, of row r = program 0 and columns of block program 1.

    masses i64[B, splits]: of each block. The tokens of at least 2^-13 of the largest probability are listed: orders and
    weights behind the row's others, indices i32[B, LIKELY], their number likely[B].
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    at = split * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    order = tl.load(orders + row * room + at, mask=inside, other=-0x80000000)
    top = value_of((_largest(largest, row, splits, SPLITS) >> 32).to(tl.int32))
    weight = tl.where(inside, _weight(value_of(order), top, _temperature(settings, row)), 0.0)
    tl.store(weights + row * room + at, weight, mask=inside)
    tl.store(masses + row * splits + split, tl.sum(_mass(weight), 0))
    listed = weight >= 0.0001220703125
    number = listed.to(tl.int32)
    first = tl.atomic_add(likely + row, tl.sum(number, 0), sem="relaxed")
    place = first + tl.cumsum(number, 0) - 1
    kept = listed & (place < LIKELY)
    tl.store(orders + row * room + behind + place, order, mask=kept)
    tl.store(weights + row * room + behind + place, weight, mask=kept)
    tl.store(indices + row * LIKELY + place, at, mask=kept)


@triton.jit
def pick_tokens(
    orders, weights, settings, largest, likely, indices, masses, out, room, behind, width, splits,
    SPLITS: tl.constexpr, LIKELY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out i64[r]: the token of row r = program 0."""
    row = tl.program_id(0).to(tl.int64)
    best = _largest(largest, row, splits, SPLITS)
    if tl.load(settings + row * 8) == 0.0:
        tl.store(out + row, index_of(best).to(tl.int64))
    else:
        temperature = _temperature(settings, row)
        top = value_of((best >> 32).to(tl.int32))
        orders += row * room
        weights += row * room
        listed = tl.load(likely + row)
        listed = tl.where(listed <= LIKELY, listed, 0)
        lowest = tl.full([], -0x80000000, tl.int64)
        known = _reached(orders + behind, weights + behind, listed, lowest, True, BLOCK)
        split = tl.arange(0, SPLITS)
        kept = tl.sum(tl.load(masses + row * splits + split, mask=split < splits, other=0), 0)

        top_k = tl.load(settings + row * 8 + 7).to(tl.int32)
        if (top_k > 0) & (top_k < width):
            start = tl.where(top_k <= listed, behind, 0)
            size = tl.where(top_k <= listed, listed, width)
            cut = _threshold(orders + start, weights + start, size, top_k.to(tl.int64), False, BLOCK)
            over = _reached(orders + start, weights + start, size, cut + 1, False, BLOCK)
            kept = _reached(orders + start, weights + start, size, cut + 1, True, BLOCK)
            kept += (top_k - over) * _mass(_weight(value_of(cut.to(tl.int32)), top, temperature))

        top_p = tl.load(settings + row * 8 + 1)
        if top_p < 1.0:
            asked = top_p.to(tl.float64) * kept.to(tl.float64)
            goal = asked.to(tl.int64)
            goal = tl.maximum(tl.where(goal.to(tl.float64) < asked, goal + 1, goal), 1)
            start = tl.where(goal <= known, behind, 0)
            size = tl.where(goal <= known, listed, width)
            cut = _threshold(orders + start, weights + start, size, goal, True, BLOCK)
            over = _reached(orders + start, weights + start, size, cut + 1, True, BLOCK)
            each = _mass(_weight(value_of(cut.to(tl.int32)), top, temperature))
            kept = tl.minimum(kept, over + (goal - over + each - 1) // each * each)

        min_p = tl.load(settings + row * 8 + 2)
        if min_p > 0.0:
            is_listed = (listed > 0) & (min_p >= 0.0001220703125)
            start = tl.where(is_listed, behind, 0)
            kept = tl.minimum(kept, _at_least(weights + start, tl.where(is_listed, listed, width), min_p, BLOCK))

        asked = tl.load(settings + row * 8 + 3).to(tl.float64) * kept.to(tl.float64)
        goal = tl.minimum(asked.to(tl.int64) + 1, kept)
        start = tl.where(goal <= known, behind, 0)
        size = tl.where(goal <= known, listed, width)
        cut = _threshold(orders + start, weights + start, size, goal, True, BLOCK)
        over = _reached(orders + start, weights + start, size, cut + 1, True, BLOCK)
        each = _mass(_weight(value_of(cut.to(tl.int32)), top, temperature))
        tie = (goal - over + each - 1) // each
        token = _equal(orders + start, size, indices + row * LIKELY, goal <= known, cut, tie, width, BLOCK)
        tl.store(out + row, token.to(tl.int64))


@triton.jit
def _largest(largest, row, splits, SPLITS: tl.constexpr):
    """The largest key of a row."""
    split = tl.arange(0, SPLITS)
    keys = tl.load(largest + row * splits + split, mask=split < splits, other=-0x8000000000000000)
    return tl.max(keys, 0)


@triton.jit
def _temperature(settings, row):
    temperature = tl.load(settings + row * 8)
    return tl.where(temperature == 0.0, 1.0, temperature)


@triton.jit
def _weight(x, top, temperature):
    """e^((x - top) / temperature). The difference is taken first: no temperature overflows."""
    return exp_exact(tl.math.div_rn(x - top, temperature))


@triton.jit
def _mass(weight):
    """2^40 of f32 weights as int64, rounded down."""
    return (weight * 1099511627776.0).to(tl.int64)


@triton.jit
def _reached(orders, weights, size, threshold, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """int64: number, or MASS, of those among the first `size` whose order is at least int64 `threshold`."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        order = tl.load(orders + at, mask=at < size, other=-0x80000000).to(tl.int64)
        total += tl.where((at < size) & (order >= threshold), _counted(weights, at, size, MASS), 0)
    return tl.sum(total, 0)


@triton.jit
def _counted(weights, at, size, MASS: tl.constexpr):
    """int64: what each of the first `size` counts for, 1 or its MASS."""
    if MASS:
        return _mass(tl.load(weights + at, mask=at < size, other=0.0))
    else:
        return (at < size).to(tl.int64)


@triton.jit
def _threshold(orders, weights, size, goal, MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest order, as int64, at or above which there are `goal`, by number or MASS: two bits in each pass."""
    low = tl.full([], -0x80000000, tl.int64)
    for digit in range(16):
        step = tl.full([], 1, tl.int64) << (30 - 2 * digit)
        first = tl.zeros([BLOCK], tl.int64)
        second = tl.zeros([BLOCK], tl.int64)
        third = tl.zeros([BLOCK], tl.int64)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            order = tl.load(orders + at, mask=at < size, other=-0x80000000).to(tl.int64)
            counted = _counted(weights, at, size, MASS)
            first += tl.where(order >= low + step, counted, 0)
            second += tl.where(order >= low + 2 * step, counted, 0)
            third += tl.where(order >= low + 3 * step, counted, 0)
        passed = (tl.sum(first, 0) >= goal).to(tl.int64) + (tl.sum(second, 0) >= goal).to(tl.int64)
        low += step * (passed + (tl.sum(third, 0) >= goal).to(tl.int64))
    return low


@triton.jit
def _at_least(weights, size, share, BLOCK: tl.constexpr):
    """int64: mass of the first `size` that have at least `share` of the largest probability."""
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + at, mask=at < size, other=0.0)
        total += tl.where(weight >= share, _mass(weight), 0)
    return tl.sum(total, 0)


@triton.jit
def _equal(orders, size, indices, is_listed, order, place, width, BLOCK: tl.constexpr):
    """int32: index number `place`, from 1 and rising, of those of int64 `order`. is_listed: `indices` has theirs."""
    low = tl.full([], 0, tl.int32)
    high = low + (width - 1)
    while low < high:
        middle = (low + high) // 2
        total = tl.zeros([BLOCK], tl.int32)
        for start in range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            index = tl.where(is_listed, tl.load(indices + at, mask=(at < size) & is_listed, other=0), at)
            equal = tl.load(orders + at, mask=at < size, other=-0x80000000).to(tl.int64) == order
            total += (equal & (index <= middle)).to(tl.int32)
        enough = tl.sum(total, 0) >= place
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


class TritonSample(SamplePlan):
    """Each logit is read once; 4 bytes of order and 4 of weight are written for it, and read as orders, once.

    Histories reach the device in `update`, as counts by token: a graph serves histories of any length. A choice that
    the list of likely tokens does not decide takes about 16 passes over the row, for each rule, by one program.
    """

    capture_level = "any"

    def _setup(self) -> None:
        self._rows = 0
        self._history = DeviceTable(self.session, 0, 2)
        self._marked = 0

    def _allocate(self, rows: int) -> None:
        spec = self.request.spec
        assert isinstance(spec, SampleSpec)
        empty, self._rows = self.session.empty, rows
        self._behind = triton.cdiv(spec.width, 16) * 16
        self._room = self._behind + _LIKELY
        self._splits = triton.cdiv(spec.width, _BLOCK)
        self._settings = empty((rows, len(_SETTINGS)), "f32")
        self._orders, self._weights = empty((rows, self._room), "i32"), empty((rows, self._room), "f32")
        self._counts = empty((rows, self._behind), "i32").zero_()
        self._largest, self._masses = (empty((rows, self._splits), "i64") for _ in range(2))
        self._likely, self._indices = empty((rows,), "i32"), empty((rows, _LIKELY), "i32")
        self._marked = 0

    def _update(self, batch: SampleBatch) -> None:
        spec = self.request.spec
        assert isinstance(spec, SampleSpec)
        rows = len(batch.temperature)
        if rows > self._rows:
            # Never under a graph: core admits no other number of rows there than was captured.
            self._allocate(max(rows, self.request.bounds.max_batch or 0))
        settings = np.empty((rows, len(_SETTINGS)), np.float32)
        for number, name in enumerate(_SETTINGS):
            values = np.asarray(getattr(batch, name))
            # At most the number of logits, which is all of them, and which f32 holds.
            settings[:, number] = np.where(values < spec.width, values, 0) if name == "top_k" else values
        self.session.write(self._settings, settings)
        self._mark(batch)

    def _mark(self, batch: SampleBatch) -> None:
        """The counts of the last batch's history away, this one's in their place."""
        self._enqueue_marks(clear=True)
        lengths = np.diff(np.asarray(batch.history_indptr, np.int64))
        places = np.repeat(np.arange(len(lengths)), lengths) * self._behind + np.asarray(batch.history_ids, np.int64)
        if len(places) > self._history.capacity:
            # No graph holds its address: what a replay reads are the counts.
            self._history = DeviceTable(self.session, 2 * len(places), 2)
        if len(places):
            self._history.write(places, 1 + np.asarray(batch.history_counts, np.int64))
        self._marked = len(places)
        self._enqueue_marks(clear=False)

    def _enqueue_marks(self, clear: bool) -> None:
        launch(
            mark_history,
            (triton.cdiv(self._marked, 1024),),
            table=self._history.entries,
            counts=self._counts if self._rows else None,
            CLEAR=clear,
            BLOCK=1024,
        )

    def _run(self, logits: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        rows, width = logits.shape
        out = torch.empty(rows, dtype=torch.int64, device=logits.device) if out is None else out
        row = {"settings": self._settings, "orders": self._orders, "largest": self._largest, "likely": self._likely}
        shape = {"room": self._room, "behind": self._behind, "width": width, "splits": self._splits, "BLOCK": _BLOCK}
        listed = {"weights": self._weights, "indices": self._indices, "masses": self._masses, "LIKELY": _LIKELY}
        listed["SPLITS"] = triton.next_power_of_2(self._splits)
        penalties = self._marked > 0 or self.session.capturing is not None
        launch(
            penalize_rows,
            (rows, self._splits),
            warps=8,
            logits=logits,
            counts=self._counts,
            stride=logits.stride(0),
            PENALTIES=penalties,
            **row,
            **shape,
        )
        launch(list_likely, (rows, self._splits), warps=8, **row, **listed, **shape)
        launch(pick_tokens, (rows,), warps=8, out=out, **row, **listed, **shape)
        return out
