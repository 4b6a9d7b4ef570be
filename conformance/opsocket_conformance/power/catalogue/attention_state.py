"""What attention kernels get wrong beside the numbers of one call: plans, memory, and results that differ each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Ragged
from opsocket_conformance.power.broken import Floats, fault, output, stages
from opsocket_conformance.power.host import partly_written, read_as_dense
from opsocket_conformance.power.plain_attention import Stages

Plan = Any
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

# ---- plans


def _first_for_ever(plan: Plan, batch: Any) -> None:
    plan.inner.update(batch)
    plan.inner.update(plan.state.setdefault("first", batch))
    plan.batch = batch


def _kept(*names: str) -> Any:
    """An update that leaves some fields of the first batch in place, where the next one has room for them."""

    def update(plan: Plan, batch: Any) -> None:
        plan.inner.update(batch)
        first = plan.state.setdefault("first", batch)
        kept = {name: getattr(first, name) for name in names}
        fits = all(np.shape(value) == np.shape(getattr(batch, name)) for name, value in kept.items())
        if fits:
            plan.inner.update(replace(batch, **kept))
        plan.batch = batch

    return update


def _shared_by_plans(plan: Plan, batch: Any) -> None:
    plan.inner.update(batch)
    plan.owner.state["last"] = plan.batch = batch


def _of_the_last_plan(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
    last = plan.owner.state["last"]
    if last is not plan.batch and len(last.kv_lens) == len(plan.batch.kv_lens):
        lengths = np.minimum(last.kv_lens, plan.batch.kv_lens)
        plan.inner.update(replace(plan.batch, kv_lens=lengths.astype(np.int32)))
    return plan.right(*args, **kwargs)


def _first_cache_for_ever(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
    """The plan remembers the address of the first cache that it ran on."""
    given = dict(zip(("q", "kv"), args, strict=False)) | kwargs
    first = plan.state.setdefault("cache", given["kv"])
    right: Any = plan.right(*args, **kwargs)
    return right if first is given["kv"] else plan.right(**(given | {"kv": first}))


_PLANS: Final = (
    fault(
        "first batch for ever",
        "plans",
        "Metadata is made once, by the first update.",
        "law=other",
        "law=",
        update=_first_for_ever,
    ),
    fault(
        "lengths updated, not the table",
        "plans",
        "The table is uploaded once.",
        "law=other",
        "law=",
        update=_kept("block_table"),
    ),
    fault(
        "table updated, not the lengths",
        "plans",
        "The lengths are uploaded once.",
        "law=other",
        "law=",
        update=_kept("kv_lens"),
    ),
    fault(
        "lengths shared by all plans",
        "plans",
        "Metadata lives in one buffer of the session.",
        "law=interleaved_plans",
        "contract[",
        "law=",
        update=_shared_by_plans,
        run=_of_the_last_plan,
    ),
    fault(
        "first cache for ever",
        "plans",
        "The cache's address is kept from the first run.",
        "law=shared_plan",
        "contract[",
        "law=",
        run=_first_cache_for_ever,
    ),
)

# ---- memory


def _overwritten(*names: str) -> Any:
    """The right result; then zeros over the leading row of an input."""

    def run(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
        given = dict(zip(("q", "kv", "sinks", "alibi", "tree_mask"), args, strict=False)) | kwargs
        result = plan.right(**given)
        for name in names:
            for array in _arrays(given.get(name)):
                first = plan.session.download(array)[:1]
                plan.session.write(array, np.zeros_like(first))
        return result

    return run


def _arrays(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Ragged):
        return [value.k]
    return list(value.planes.values())[:1] if hasattr(value, "planes") else [value]


def _table_rounded(plan: Plan, batch: Any) -> None:
    """The caller's table is clamped where it lies."""
    plan.inner.update(batch)
    plan.batch = batch
    if batch.block_table is not None and batch.block_table.size:
        np.maximum(batch.block_table, 0, out=batch.block_table)


def _before_the_output(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
    """A store at row -1: into the array that the output is a slice of."""
    result, out = plan.right(*args, **kwargs), kwargs.get("out")
    if out is not None:
        shape = plan.session.describe(out).shape
        for whole in plan.owner.state.get("uploaded", []):
            info = plan.session.describe(whole)
            if info.shape[1:] == shape[1:] and info.shape[0] > shape[0]:
                plan.session.write(whole, np.zeros((1, *shape[1:]), np.float32))
    return result


def _remembered(session: Any, *args: Any, **kwargs: Any) -> Any:
    array = session.right.upload(*args, **kwargs)
    session.state.setdefault("uploaded", []).append(array)
    return array


def _padding_written(self: Stages, rows: int, values: Floats, lse: Floats, out: Any, lse_out: Any) -> Any:
    extra = rows - len(values)
    values = np.concatenate([values, np.zeros((extra, *values.shape[1:]), values.dtype)])
    lse = np.concatenate([lse, np.full((extra, lse.shape[1]), -np.inf, lse.dtype)])
    return Stages.store(self, rows, values, lse, out, lse_out)


def _elsewhere(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
    return plan.right(*args, **(kwargs | {"out": None}))


_MEMORY: Final = (
    fault("input overwritten: q", "memory", "The query is scaled where it lies.", run=_overwritten("q")),
    fault(
        "input overwritten: cache",
        "memory",
        "Keys are dequantized, or rotated, where they lie.",
        run=_overwritten("kv"),
    ),
    fault(
        "input overwritten: sinks and slopes",
        "memory",
        "Their memory serves as scratch.",
        "sinks=1",
        "alibi=1",
        run=_overwritten("sinks", "alibi"),
    ),
    fault("input overwritten: block table", "memory", "The host's table is clamped in place.", update=_table_rounded),
    fault(
        "a row in front of the output",
        "memory",
        "A store at row -1.",
        run=_before_the_output,
        session={"upload": _remembered},
    ),
    fault("padding rows written", "memory", "Every row of q gets a result.", kernel=stages(store=_padding_written)),
    fault("out= ignored", "memory", "A new array is returned, and the one given stays as it was.", run=_elsewhere),
    fault(
        "last row not written", "memory", "A store masked one row short.", run=partly_written(lambda out: out[-4:-3])
    ),
    fault(
        "last channels not written",
        "memory",
        "A vector loop without its tail.",
        run=partly_written(lambda out: out[..., -3:]),
    ),
    fault(
        "last head not written", "memory", "Heads in pairs.", "hq=9", "hq=7", run=partly_written(lambda out: out[:, -1])
    ),
    fault(
        "queries beyond 64 of a request lost",
        "memory",
        "One tile of queries for each request.",
        "batch=wide",
        result=output(lambda plan, out: _only_first(plan, out, 64)),
    ),
    fault(
        "strided query read as dense",
        "memory",
        "The token stride is taken for heads * head_dim.",
        "strided=1",
        run=read_as_dense,
    ),
)


def _only_first(plan: Plan, out: Floats, count: int) -> Floats:
    starts = np.asarray(plan.batch.q_indptr)
    row = np.arange(len(out))
    start = starts[np.searchsorted(starts, row, side="right") - 1]
    return np.where((row - start < count)[:, None, None], out, np.float32(0))


# ---- results that are not the same each time


def _calls(plan: Plan) -> int:
    """How many calls this session has had, this one included."""
    calls: int = plan.owner.state.get("calls", 0) + 1
    plan.owner.state["calls"] = calls
    return calls


def _noise(size: float) -> Any:
    def change(plan: Plan, out: Floats) -> Floats:
        noise = np.random.default_rng(_calls(plan)).standard_normal(out.shape)
        return (out * (1 + size * noise)).astype(np.float32)

    return output(change)


def _race(every: int) -> Any:
    """Each so many calls, the last row is what was there before."""

    def run(plan: Plan, args: Args, kwargs: Kwargs) -> Any:
        if _calls(plan) % every:
            return plan.right(*args, **kwargs)
        return partly_written(lambda out: out[max(int(plan.batch.q_indptr[-1]) - 1, 0) :][:1])(plan, args, kwargs)

    return run


def _mixed_with_the_neighbour(plan: Plan, out: Floats) -> Floats:
    mixed: Floats = out + np.float32(1e-3) * np.roll(out, 1, axis=0)
    return mixed


def _by_size_of_the_batch(plan: Plan, out: Floats) -> Floats:
    """Another kernel, of 1e-3 more, for more than one request."""
    more: Floats = out * np.float32(1.002) if len(plan.batch.kv_lens) > 1 else out
    return more


def _one_maximum(self: Stages, *operands: Any) -> Any:
    """The largest logit of the whole batch is taken off everywhere."""
    self.shared = max(  # type: ignore[attr-defined]
        (
            float(np.where(Stages.visible(self, row), Stages.scores(self, row), -np.inf).max(initial=-np.inf))
            for row in Stages.rows(self, Stages.load(self, *operands[:5]))
        ),
        default=0.0,
    )
    return Stages.run(self, *operands)


def _shared_top(self: Stages, logits: Floats, unmasked: Floats, sink: Floats | None) -> Floats:
    return np.full((*logits.shape[:2], 1), self.shared, self.work)  # type: ignore[attr-defined]


_DETERMINISM: Final = (
    fault(
        "1e-3 run-to-run noise",
        "determinism",
        "Atomic additions in another order each time.",
        "law=rerun",
        "q=f32",
        result=_noise(1e-3),
    ),
    fault(
        "1e-5 run-to-run noise",
        "determinism",
        "Sums in another order each time.",
        "law=rerun",
        "q=f32",
        result=_noise(1e-5),
    ),
    fault(
        "batch-dependent results",
        "determinism",
        "One maximum for the whole batch.",
        "x=large",
        "x=peaky",
        kernel=stages(run=_one_maximum, top=_shared_top),
    ),
    fault(
        "neighbour's rows mixed in",
        "determinism",
        "Rows of a tile leak 1e-3 into the next.",
        result=output(_mixed_with_the_neighbour),
    ),
    fault(
        "another kernel for more than one request",
        "determinism",
        "Its results are 2e-3 larger.",
        result=output(_by_size_of_the_batch),
    ),
    fault(
        "stale row in every 7th call",
        "determinism",
        "A race that is lost now and then.",
        "law=decoded",
        "contract[",
        "law=chunked",
        run=_race(7),
    ),
    fault(
        "stale row in every 3rd call",
        "determinism",
        "A race that is lost now and then.",
        "law=",
        "contract[",
        run=_race(3),
    ),
)

FAULTS: Final = (*_PLANS, *_MEMORY, *_DETERMINISM)
