"""Work is done in the order in which it was enqueued, with nobody waiting in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Array,
    AttentionBatch,
    Cache,
    CacheMoveSpec,
    CacheWriteSpec,
    MoveBatch,
    Request,
    SlotBatch,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.contract import work
from opsocket_conformance.findings import Float64
from opsocket_conformance.operators.attention.knobs import judge
from opsocket_conformance.operators.attention.scene import Scene
from opsocket_conformance.operators.cache import under_test as caches

_ROUNDS: Final = 3

Float32 = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Tokens:
    """The scene's keys and values on the device in the order of their slots, and on the host by request."""

    k: Array
    v: Array
    keys: list[Float64]
    values: list[Float64]


@dataclass(eq=False)
class _Stage:
    """All that the steps need, on the device before the first of them."""

    scene: Scene
    cache: Cache
    q: Array
    tokens: tuple[_Tokens, _Tokens]
    write: Any
    write_moved: Any
    move: Any
    attend: Any
    attend_moved: Any


def order(bench: Bench, rng: np.random.Generator, dtype: str) -> None:
    """Write, attend, move to other pages, attend there, overwrite, attend: each sees what came before it and nothing
    that comes after, whether or not somebody waits after every step."""
    scene, same_bits = work.attention_scene(bench, rng, dtype, batch="long")
    for number in range(_ROUNDS):
        stage = _stage(bench, rng, scene)
        waiting = _steps(bench, stage, bench.session.synchronize)
        stage = replace(stage, cache=_cache(bench, scene))
        hurried = _steps(bench, stage, lambda: None)
        names = ("attention after a write", "attention after a move", "attention after an overwrite")
        for name, tokens, out, waited in zip(names, (0, 0, 1), hurried, waiting, strict=True):
            problem = scene.problem(stage.tokens[tokens].keys, stage.tokens[tokens].values)
            judge(bench, problem, out, None)
            if same_bits:
                bench.same(f"{name}, with and without waiting, round {number}", work.bits(out), work.bits(waited))
        if same_bits:
            bench.same("attention before and after a move", work.bits(hurried[1]), work.bits(hurried[0]))


def _steps(bench: Bench, stage: _Stage, then: Callable[[], None]) -> list[Float64]:
    first, second = stage.tokens
    cache = bench.run(stage.write, stage.cache, first.k, first.v)
    then()
    written, _ = bench.run(stage.attend, stage.q, cache)
    then()
    cache = bench.run(stage.move, cache, cache)
    then()
    moved, _ = bench.run(stage.attend_moved, stage.q, cache)
    then()
    cache = bench.run(stage.write_moved, cache, second.k, second.v)
    then()
    overwritten, _ = bench.run(stage.attend_moved, stage.q, cache)
    then()
    return [bench.get(out) for out in (written, moved, overwritten)]


def _cache(bench: Bench, scene: Scene) -> Cache:
    assert scene.request.cache is not None
    return caches.allocate(bench, scene.request.cache, scene.spec.q_dtype, caches.Scales(None, None))


def _stage(bench: Bench, rng: np.random.Generator, scene: Scene) -> _Stage:
    spec, dtype = scene.request.cache, scene.spec.q_dtype
    assert spec is not None
    cache = _cache(bench, scene)
    slots = np.concatenate(scene.slots)
    place = rng.permutation(spec.num_blocks)
    everywhere = np.arange(spec.num_slots)
    target = place[everywhere // spec.block_size] * spec.block_size + everywhere % spec.block_size
    table = np.asarray(scene.batch.block_table)
    valid = (table >= 0) & (table < spec.num_blocks)
    moved: AttentionBatch = replace(
        scene.batch, block_table=np.where(valid, place[np.where(valid, table, 0)], table).astype(np.int32)
    )
    writes = Request(CacheWriteSpec(dtype), spec, cache.layout)
    return _Stage(
        scene,
        cache,
        bench.put("q", scene.q, dtype),
        (_tokens(bench, rng, scene, slots), _tokens(bench, rng, scene, slots)),
        bench.plan(writes, SlotBatch(slots)),
        bench.plan(writes, SlotBatch(np.where(slots < 0, slots, target[slots]))),
        bench.plan(Request(CacheMoveSpec(), spec, cache.layout), MoveBatch(everywhere, target)),
        bench.plan(scene.request, scene.batch),
        bench.plan(scene.request, moved),
    )


def _tokens(bench: Bench, rng: np.random.Generator, scene: Scene, slots: npt.NDArray[np.int64]) -> _Tokens:
    """The scene's keys and values, every number at another place."""
    keys, values = ([_shuffled(rng, part) for part in parts] for parts in (scene.keys, scene.values))
    dtype = scene.spec.q_dtype
    k, v = (bench.put(name, np.concatenate(parts), dtype) for name, parts in (("k", keys), ("v", values)))
    return _Tokens(k, v, [part.astype(np.float64) for part in keys], [part.astype(np.float64) for part in values])


def _shuffled(rng: np.random.Generator, values: Float32) -> Float32:
    return rng.permutation(values.ravel()).reshape(values.shape)
