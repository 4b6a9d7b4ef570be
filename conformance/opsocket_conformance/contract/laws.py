"""Laws of plans and sessions: what one of them does, and in which order, is nothing that another can notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import Cache, ContractError, OpsocketError, ResourceError
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.contract import work
from opsocket_conformance.contract.order import order
from opsocket_conformance.contract.sessions import other_thread, threads, two_sessions
from opsocket_conformance.contract.work import Work
from opsocket_conformance.findings import Host
from opsocket_conformance.operators.attention.scene import fill
from opsocket_conformance.operators.cache import under_test as caches

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contract(Check):
    """law: a name in `LAWS`. dtype: of activations, caches and weights."""

    name: ClassVar[str] = "contract"
    shown: ClassVar[tuple[str, ...]] = ("law", "dtype")

    law: str = "interleaved_plans"
    dtype: str = "bf16"

    @property
    def operator(self) -> str:
        return "attention"

    def __post_init__(self) -> None:
        if self.law not in LAWS:
            raise ContractError("case.law", f"one of {sorted(LAWS)}", repr(self.law))

    def features(self) -> frozenset[str]:
        return frozenset({"op:attention", "cache:same", f"dtype:{self.dtype}"}) | LAWS[self.law].features(self.dtype)

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        LAWS[self.law].holds(bench, rng, self.dtype)


def _interleaved_plans(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """Plans of many requests, and two of one request, are alive together and take turns: each gives what it gives
    alone, whatever order they are updated and run in."""
    works = list(work.assorted(bench, rng, dtype))
    alone = [each.alone(bench) for each in works]
    plans = [each.plan(bench) for each in works]  # all updated before any runs
    rounds = [np.arange(len(works)), np.arange(len(works))[::-1], rng.permutation(len(works))]
    for turn, indices in enumerate(rounds):
        for index in indices:
            works[index].check(bench, f"in turn {turn}", works[index].run(bench, plans[index]), alone[index])
    for index in rounds[2]:
        if works[index].batch is not None:
            plans[index].update(works[index].batch)
        other = int(rng.integers(len(works)))
        got = works[other].run(bench, plans[other])  # while the plan just updated waits for its run
        works[other].check(bench, "between another's update and run", got, alone[other])
        got = works[index].run(bench, plans[index])
        works[index].check(bench, "updated again", got, alone[index])


def _shared_plan(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """One plan serves the layers of a model, each with a cache of its own: as plans of their own would. And it serves
    one batch after the other. Few heads: it makes 13 calls, and what it asks does not depend on them."""
    layers: list[Work] = []
    for layer in range(3):
        scene, same_bits = work.attention_scene(bench, np.random.default_rng(7), dtype, hq=4, hkv=2, batch="mixed")
        scene = replace(
            scene,
            q=_redrawn(rng, scene.q),
            keys=[_redrawn(rng, part) for part in scene.keys],
            values=[_redrawn(rng, part) for part in scene.values],
        )
        kv, keys, values = fill(bench, scene)
        layers.append(work.attention(bench, f"layer {layer}", scene, same_bits, kv, keys, values))
    scene, keys, values = work.shortened(scene, keys, values)
    layers.append(work.attention(bench, "the last layer with shorter sequences", scene, same_bits, kv, keys, values))
    alone = [layer.alone(bench) for layer in layers]
    plan = layers[0].plan(bench)
    for turn, order_of in enumerate(((0, 1, 2), (3,), (2, 1, 0), (3, 0, 3))):
        for index in order_of:
            if index == 3 or plan.batch is not layers[0].batch:
                plan.update(layers[index].batch if index == 3 else layers[0].batch)
            got = layers[index].run(bench, plan)
            layers[index].check(bench, f"by a plan that serves all, turn {turn}", got, alone[index])


def _redrawn(rng: np.random.Generator, values: Float32) -> Float32:
    """The same numbers elsewhere, so that they stay representable."""
    return rng.permutation(values.ravel()).reshape(values.shape)


def _after_errors(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """Refused batches, refused arrays and memory that is not there leave plan, batch and cache as they were."""
    scene, same_bits = work.attention_scene(bench, rng, dtype, batch="mixed")
    kv, keys, values = fill(bench, scene)
    attend = work.attention(bench, "attention", scene, same_bits, kv, keys, values)
    cache, batch = scene.request.cache, scene.batch
    assert cache is not None
    alone = attend.alone(bench)
    plan = attend.plan(bench)
    q = bench.put("q", scene.q, dtype)
    beyond, short = np.full_like(np.asarray(batch.block_table), cache.num_blocks), bench.put("q", scene.q[:3], dtype)
    wrong: dict[str, Callable[[], object]] = {
        "a table beyond the cache": lambda: plan.update(replace(batch, block_table=beyond)),
        "lengths beyond the table": lambda: plan.update(replace(batch, kv_lens=np.asarray(batch.kv_lens) + 999)),
        "no batch at all": lambda: plan.update(None),
        "too few rows of q": lambda: plan.run(short, kv),
        "no cache": lambda: plan.run(q, None),
        "sinks that nobody asked for": lambda: plan.run(q, kv, sinks=q),
        "an output of another shape": lambda: plan.run(q, kv, out=short),
    }
    for what, attempt in wrong.items():
        _refused(bench, what, attempt, ContractError)
        if plan.batch is not batch:
            bench.fail(f"after {what} the plan has another batch")
        attend.check(bench, f"after {what}", attend.run(bench, plan), alone)
    before = _contents(bench, kv)
    huge = replace(cache, num_blocks=1 << 40)
    _refused(bench, "a cache of 2^40 blocks", lambda: bench.session.allocate_cache(huge), ResourceError)
    attend.check(bench, "after a cache of 2^40 blocks was refused", attend.run(bench, plan), alone)
    for name, now, then in zip("kv", _contents(bench, kv), before, strict=True):
        bench.same(f"cache, {name} by slot", now, then)


def _contents(bench: Bench, cache: object) -> list[Host]:
    assert isinstance(cache, Cache)
    return [work.bits(part) for part in caches.read(bench, cache, np.arange(cache.spec.num_slots))]


def _refused(bench: Bench, what: str, attempt: Callable[[], object], error: type[OpsocketError]) -> None:
    try:
        attempt()
    except error:
        return
    except OpsocketError as other:
        bench.fail(f"{what}: wanted {error.__name__}, got {type(other).__name__}: {other}")
        return
    bench.fail(f"{what}: nothing was raised")


@dataclass(frozen=True)
class Law:
    """holds: looks whether it does, in one type. operators: that it takes beside attention."""

    holds: Callable[[Bench, np.random.Generator, str], None]
    operators: tuple[str, ...] = ("cache_write",)

    def features(self, dtype: str) -> frozenset[str]:
        weights = {f"weight:{dtype}"} if "matmul" in self.operators else set()
        return frozenset({f"op:{name}" for name in self.operators} | weights)


_ASSORTED = ("cache_write", "cache_read", "matmul", "rms_norm")
LAWS: Final[Mapping[str, Law]] = {
    "interleaved_plans": Law(_interleaved_plans, _ASSORTED),
    "shared_plan": Law(_shared_plan),
    "after_errors": Law(_after_errors, ("cache_write", "cache_read")),
    "order": Law(order, ("cache_write", "cache_move")),
    "other_thread": Law(other_thread, _ASSORTED),
    "two_sessions": Law(two_sessions, _ASSORTED),
    "threads": Law(threads, _ASSORTED),
}
"""By name."""
