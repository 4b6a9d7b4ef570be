"""Caches of more than 2^31 elements a plane: writes, reads, moves, copies and attention around the boundary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    BlockPairs,
    Bounds,
    Cache,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    MoveBatch,
    Reason,
    Request,
    ResourceError,
)
from opsocket_conformance.bench import Bench, Denied
from opsocket_conformance.case import Case, Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.large.room import BOUNDARY, check_room
from opsocket_conformance.operators.attention.knobs import judge
from opsocket_conformance.operators.attention.oracle import Problem
from opsocket_conformance.operators.attention.scene import SCALE
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.cache.formats import cache_spec
from opsocket_conformance.operators.cache.quantizer import Stored

Int64 = npt.NDArray[np.int64]

_OPERATORS: Final = ("cache_write", "cache_read", "cache_move", "cache_copy_blocks", "attention")
_NEIGHBOURS: Final = 3


@dataclass(frozen=True)
class LargeCache(Check):
    """op: the operator that works beyond the boundary. kv: cache format ("": dtype). hkv, d, dv, bs: as in `Attention`.
    elements: that K's plane has at least; the blocks that are used lie around it, its half, and both ends."""

    name: ClassVar[str] = "large_cache"
    shown: ClassVar[tuple[str, ...]] = ("op", "dtype", "kv")

    op: str = "cache_write"
    dtype: str = "bf16"
    kv: str = "i8.token_head"
    hkv: int = 8
    d: int = 128
    dv: int = 128
    bs: int = 16
    elements: int = BOUNDARY

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise ContractError("case.op", f"one of {_OPERATORS}", repr(self.op))

    @property
    def operator(self) -> str:
        return self.op

    def features(self) -> frozenset[str]:
        return frozenset({f"op:{self.op}", f"dtype:{self.dtype}", f"cache:{self.kv or 'same'}", "large"})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        per_block = self.hkv * self.bs * self.d
        boundary = self.elements // per_block
        spec = cache_spec(self.kv or self.dtype, boundary + 2 * _NEIGHBOURS, self.bs, self.hkv, self.d, self.dv)
        place = _Place(spec, self._blocks(boundary, spec.num_blocks), self.dtype)
        cache, pair, scales = _filled(bench, rng, place)
        {
            "cache_write": _check_written, "cache_read": _check_written, "cache_move": _move,
            "cache_copy_blocks": _copy, "attention": _attend,
        }[self.op](bench, rng, place, cache, pair, scales)  # fmt: skip

    @staticmethod
    def _blocks(boundary: int, count: int) -> Int64:
        """Blocks on both sides of the boundary, the last, the first, and those in the middle: there lies 2^31 in bytes
        where elements have two, and there a wrapped offset lands."""
        at = {0, boundary // 2, boundary, count - 1}
        near = {block + offset for block in at for offset in range(-_NEIGHBOURS, _NEIGHBOURS + 1)}
        return np.array(sorted(block for block in near if 0 <= block < count), np.int64)


@dataclass(frozen=True, eq=False)
class _Place:
    """A cache's spec, the blocks of it that a case writes to, and the type of what is written."""

    spec: CacheSpec
    blocks: Int64
    dtype: str

    @property
    def slots(self) -> Int64:
        size = self.spec.block_size
        return (self.blocks[:, None] * size + np.arange(size)).ravel()


def _filled(bench: Bench, rng: np.random.Generator, place: _Place) -> tuple[Cache, caches.Pair, caches.Scales]:
    """A cache with tokens of its own in every slot of the place. Only those are ever read."""
    dtype = place.dtype
    bench.plan(Request(CacheWriteSpec(dtype), place.spec))
    layouts = bench.session.cache_layouts(place.spec)
    if not layouts:
        raise Denied((Reason("layout", "cache", str(place.spec), "a layout that holds it"),))
    check_room(bench.session, place.spec.num_blocks * layouts[0].bytes_per_block)
    pair = caches.tokens(rng, place.spec, dtype, len(place.slots))
    scales = caches.calibrate(place.spec, pair.k, pair.v)
    try:
        cache = bench.session.allocate_cache(place.spec, layouts[0], scales.k, scales.v)
    except ResourceError as error:
        raise Denied((Reason("memory", error.what, error.have, error.need),)) from None
    order = rng.permutation(len(place.slots))
    cache = caches.write(bench, cache, dtype, place.slots[order], pair.k[order], pair.v[order])
    return cache, pair, scales


def _held(bench: Bench, place: _Place, cache: Cache, pair: caches.Pair, scales: caches.Scales) -> tuple[Stored, ...]:
    """What every slot of the place turns out to hold: what was written there."""
    stored = caches.expected(place.spec, pair.k, pair.v, scales)
    got = caches.read(bench, cache, place.slots)
    return tuple(caches.judge(bench, name, g, s) for name, g, s in zip("kv", got, stored, strict=True))


def _check_written(
    bench: Bench, rng: np.random.Generator, place: _Place, cache: Cache, pair: caches.Pair, scales: caches.Scales
) -> None:
    _held(bench, place, cache, pair, scales)


def _move(
    bench: Bench, rng: np.random.Generator, place: _Place, cache: Cache, pair: caches.Pair, scales: caches.Scales
) -> None:
    """Tokens from all over to all over."""
    _held(bench, place, cache, pair, scales)
    before = caches.read(bench, cache, place.slots)
    turn = rng.permutation(len(place.slots))
    batch = MoveBatch(place.slots, place.slots[turn])
    moved = bench.run(bench.plan(Request(CacheMoveSpec(), place.spec, cache.layout), batch), cache, cache)
    for name, old, now in zip("kv", before, caches.read(bench, moved, place.slots[turn]), strict=True):
        bench.same(f"{name} by slot after the move", now, old)


def _copy(
    bench: Bench, rng: np.random.Generator, place: _Place, cache: Cache, pair: caches.Pair, scales: caches.Scales
) -> None:
    """Whole blocks from all over to all over."""
    _held(bench, place, cache, pair, scales)
    before = caches.read(bench, cache, place.slots)
    turn = _Place(place.spec, rng.permutation(place.blocks), place.dtype)
    batch = BlockPairs(np.stack([place.blocks, turn.blocks], axis=1))
    copied = bench.run(bench.plan(Request(CacheCopyBlocksSpec(), place.spec, cache.layout), batch), cache, cache)
    for name, old, now in zip("kv", before, caches.read(bench, copied, turn.slots), strict=True):
        bench.same(f"{name} by slot after the copy", now, old)


def _attend(
    bench: Bench, rng: np.random.Generator, place: _Place, cache: Cache, pair: caches.Pair, scales: caches.Scales
) -> None:
    """Requests whose pages lie on both sides of the boundary, decoding and in chunks."""
    spec, group = place.spec, 2
    held = [part.values for part in _held(bench, place, cache, pair, scales)]
    size, count = spec.block_size, len(place.blocks)
    q_lens, used = np.array([1, 5, 1, 17]), np.array([count, count // 2, 2, count - 1])
    kv_lens = used * size - np.array([3, 0, 1, 7])
    order = [rng.permutation(count) for _ in used]  # of places, not of blocks
    table = np.stack([place.blocks[turn] for turn in order]).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    dtype = place.dtype
    asked = AttentionSpec(
        group * spec.num_kv_heads, spec.num_kv_heads, spec.head_dim_k, spec.head_dim_v,
        SCALE / np.sqrt(spec.head_dim_k), q_dtype=dtype, out_dtype=dtype,
    )  # fmt: skip
    bounds = Bounds(len(q_lens) * 17, len(q_lens), 17, int(kv_lens.max()))
    batch = AttentionBatch(indptr, kv_lens.astype(np.int32), table)
    plan = bench.plan(Request(asked, spec, cache.layout, bounds), batch)
    q = round_to(rng.standard_normal((int(indptr[-1]), asked.num_q_heads, spec.head_dim_k)), dtype)
    out, _ = bench.run(plan, bench.put("q", q, dtype), cache)
    token = np.arange(size)
    rows = [(turn[:, None] * size + token).ravel()[:n] for turn, n in zip(order, kv_lens, strict=True)]
    keys, values = ([part[where] for where in rows] for part in held)
    judge(bench, Problem(asked, batch, q.astype(np.float64), keys, values), bench.get(out), None)


def cases() -> Iterator[Case]:
    for op in _OPERATORS:
        yield Case(LargeCache(op), 0, "large")
        # Offsets in bytes, too: two bytes for each element, and K and V beyond 2^31 elements only together.
        yield Case(LargeCache(op, kv="", elements=BOUNDARY // 2 + (1 << 20)), 0, "large")
    for op in ("cache_write", "attention"):
        yield Case(LargeCache(op, kv="", dv=16), 0, "large")  # K alone is beyond 2^31 elements of two bytes
