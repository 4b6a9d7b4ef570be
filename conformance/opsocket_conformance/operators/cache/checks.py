"""The four operators over a cache: what is stored, by whom it is overwritten, and that copies are exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheSpec,
    MoveBatch,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.findings import Float64
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.cache.formats import cache_spec
from opsocket_conformance.operators.rounding import check_rounded_once
from opsocket_conformance.tolerance import rounded_once

_BLOCKS = 7


@dataclass(frozen=True)
class _CacheCheck(Check):
    """hkv, d, dv: KV heads and head sizes. bs: block size. dtype: of k and v as they come. kv: what the cache stores
    ("": as they come). layout: which of the session's. latent: the cache's kind."""

    shown: ClassVar[tuple[str, ...]] = ("hkv", "d", "bs", "dtype")

    hkv: int = 3
    d: int = 64
    dv: int = 0
    bs: int = 16
    dtype: str = "bf16"
    kv: str = ""
    layout: int = 0
    latent: bool = False

    @property
    def operator(self) -> str:
        return self.name

    def features(self) -> frozenset[str]:
        flags = {
            "layout": self.layout > 0,
            "latent": self.latent,
            "mixed_cache": "+" in self.kv,
            f"head_dim:{self.d}": self.d not in (64, 128) or self.dv not in (0, self.d),
            f"block_size:{self.bs}": self.bs != 16,
        }
        needs = {f"op:{self.operator}", f"dtype:{self.dtype}", f"cache:{self.kv or 'same'}"}
        return frozenset(needs | {name for name, on in flags.items() if on})

    @property
    def spec(self) -> CacheSpec:
        kv = self.kv or self.dtype
        return cache_spec(kv, _BLOCKS, self.bs, self.hkv, self.d, self.dv or self.d, self.latent)

    def _filled(self, bench: Bench, rng: np.random.Generator) -> tuple[Cache, caches.Pair]:
        """A cache every slot of which holds a token of its own."""
        pair = caches.tokens(rng, self.spec, self.dtype, self.spec.num_slots)
        scales = caches.calibrate(self.spec, pair.k, pair.v)
        cache = caches.allocate(bench, self.spec, self.dtype, scales, self.layout)
        return caches.write(bench, cache, self.dtype, np.arange(self.spec.num_slots), pair.k, pair.v), pair

    def _held(self, bench: Bench, cache: Cache, pair: caches.Pair) -> tuple[Float64, Float64]:
        """Every slot of a cache that `pair` filled. Held against what was written: copies that are compared with each
        other agree also where every read gives 0."""
        got = _contents(bench, cache, self.spec.num_slots)
        stored = caches.expected(self.spec, pair.k, pair.v, caches.calibrate(self.spec, pair.k, pair.v))
        for name, part, values in zip(("k", "v"), stored, got, strict=True):
            caches.judge(bench, name, values, part)
        return got


@dataclass(frozen=True)
class CacheWrite(_CacheCheck):
    """Write, then read everything: the written slots hold what the pinned quantizer says, all others what they held.

    x: "normal"; "ties": values halfway between two codes; "even": the same, under static scales that are powers of two,
    so that nothing but the tie itself is rounded; "range": from saturation down to all-zero tokens; "nan": NaN
    among float codes.
    """

    name: ClassVar[str] = "cache_write"
    x: str = "normal"

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        spec, count = self.spec, self.spec.num_slots
        background, fresh = (caches.tokens(rng, spec, self.dtype, count) for _ in range(2))
        scales = caches.calibrate(spec, background.k, background.v)
        if self.x == "even":
            scales = caches.powers_of_two(scales)
        fresh = fresh.reshaped(self.x, rng, spec, scales, self.dtype)
        cache = caches.allocate(bench, spec, self.dtype, scales, self.layout)
        everything = np.arange(count)
        cache = caches.write(bench, cache, self.dtype, everything, background.k, background.v)

        slots = rng.permutation(count)[: count // 2 + 1]
        slots = np.where(np.arange(len(slots)) % 4 == 3, -1, slots)
        k, v = (caches.padded(part[: len(slots)], slots < 0) for part in (fresh.k, fresh.v))
        cache = caches.write(bench, cache, self.dtype, slots, k, v)

        k_all, v_all = background.k.copy(), background.v.copy()
        kept = slots >= 0
        k_all[slots[kept]], v_all[slots[kept]] = k[: len(slots)][kept], v[: len(slots)][kept]
        for name, stored, got in zip(
            ("k", "v"),
            caches.expected(spec, k_all, v_all, scales),
            caches.read(bench, cache, everything),
            strict=True,
        ):
            caches.judge(bench, name, got, stored)


@dataclass(frozen=True)
class CacheRead(_CacheCheck):
    """Slots in any order, some twice, as another type than they came in. to: the type they are read as. nan: float
    codes hold NaN too."""

    name: ClassVar[str] = "cache_read"
    to: str = "f32"
    nan: bool = False

    def features(self) -> frozenset[str]:
        # Every case reads caches back as f32; a backend of one 16-bit type lacks the other.
        return super().features() | ({f"dtype:{self.to}"} if self.to != "f32" else set())

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        cache, pair = self._filled(bench, rng)
        slots = rng.integers(0, self.spec.num_slots, self.spec.num_slots + 5)
        scales = caches.calibrate(self.spec, pair.k, pair.v)
        if self.nan:
            pair = pair.reshaped("nan", rng, self.spec, scales, self.dtype)
            everything = np.arange(self.spec.num_slots)
            cache = caches.write(bench, cache, self.dtype, everything, pair.k, pair.v)
        stored = caches.expected(self.spec, pair.k, pair.v, scales)
        got = caches.read(bench, cache, slots, self.to)
        for name, part, values in zip(("k", "v"), stored, got, strict=True):
            held = caches.judge(bench, name, values, part.rows(slots), self.to).values
            check_rounded_once(bench, f"cache_read {name}", values, held, rounded_once(held, self.to), self.to)
        nothing = caches.read(bench, cache, slots[:0], self.to)
        if any(len(part) for part in nothing):
            bench.fail("cache_read of no slots returns rows")


@dataclass(frozen=True)
class CacheMove(_CacheCheck):
    """how: "overlap" shifts a run of slots by one within a cache; "swap" exchanges slots; "across" copies to another
    cache, one source slot to two places."""

    name: ClassVar[str] = "cache_move"
    how: str = "overlap"

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        src, pair = self._filled(bench, rng)
        count = self.spec.num_slots
        if self.how == "overlap":
            source, target = np.arange(count - 1), np.arange(1, count)
        elif self.how == "swap":
            source = rng.permutation(count)[: count - 3]
            target = np.roll(source, 1)
        else:
            source, target = rng.integers(0, count, count // 2), rng.permutation(count)[: count // 2]
        dst = src if self.how != "across" else self._other(bench, rng, pair)
        before_src, before_dst = self._held(bench, src, pair), _contents(bench, dst, count)
        plan = bench.plan(Request(CacheMoveSpec(), self.spec, src.layout), MoveBatch(source, target))
        moved = bench.run(plan, src, dst)
        now = _contents(bench, moved, count)
        for name, old_src, old_dst, new in zip("kv", before_src, before_dst, now, strict=True):
            want = old_dst.copy()
            want[target] = old_src[source]
            bench.same(f"{name} by slot after the move", new, want)
        if dst is not src:
            _check_unchanged(bench, "src", src, before_src)

    def _other(self, bench: Bench, rng: np.random.Generator, pair: caches.Pair) -> Cache:
        """A second cache under the same static scales, with contents of its own."""
        scales = caches.calibrate(self.spec, pair.k, pair.v)
        cache = caches.allocate(bench, self.spec, self.dtype, scales, self.layout)
        other = caches.tokens(rng, self.spec, self.dtype, self.spec.num_slots)
        return caches.write(bench, cache, self.dtype, np.arange(self.spec.num_slots), other.k, other.v)


@dataclass(frozen=True)
class CacheCopyBlocks(_CacheCheck):
    """how: "rotate" moves whole blocks round within a cache, as if buffered; "across" copies to a cache of another
    size."""

    name: ClassVar[str] = "cache_copy_blocks"
    how: str = "rotate"

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        src, pair = self._filled(bench, rng)
        spec = self.spec
        blocks = rng.permutation(spec.num_blocks)[:5]
        if self.how == "rotate":
            dst, pairs = src, np.stack([blocks, np.roll(blocks, 1)], axis=1)
        else:
            larger = replace(spec, num_blocks=spec.num_blocks + 4)
            scales = caches.calibrate(spec, pair.k, pair.v)
            other = caches.tokens(rng, larger, self.dtype, larger.num_slots)
            dst = caches.allocate(bench, larger, self.dtype, scales, self.layout)
            dst = caches.write(bench, dst, self.dtype, np.arange(larger.num_slots), other.k, other.v)
            pairs = np.stack([np.append(blocks, blocks[0]), rng.permutation(larger.num_blocks)[:6]], axis=1)
        before_src = self._held(bench, src, pair)
        before_dst = _contents(bench, dst, dst.spec.num_slots)
        plan = bench.plan(Request(CacheCopyBlocksSpec(), dst.spec, dst.layout), BlockPairs(pairs))
        copied = bench.run(plan, src, dst)
        now = _contents(bench, copied, dst.spec.num_slots)
        for name, old_src, old_dst, new in zip("kv", before_src, before_dst, now, strict=True):
            want = old_dst.copy()
            for a, b in pairs:
                want[b * self.bs : (b + 1) * self.bs] = old_src[a * self.bs : (a + 1) * self.bs]
            bench.same(f"{name} by slot after the copy", new, want)
        if dst is not src:
            _check_unchanged(bench, "src", src, before_src)


def _contents(bench: Bench, cache: Cache, count: int) -> tuple[Float64, Float64]:
    """Every slot, by `cache_read`."""
    return caches.read(bench, cache, np.arange(count))


def _check_unchanged(bench: Bench, name: str, cache: Cache, before: tuple[Float64, Float64]) -> None:
    for part, old, now in zip("kv", before, _contents(bench, cache, len(before[0])), strict=True):
        bench.same(f"{name}.{part}, which is only read", now, old)
