"""One attention call put together from a case's fields: numbers, lengths, pages, and the cache that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    Array,
    AttentionBatch,
    AttentionSpec,
    Bounds,
    Cache,
    CacheSpec,
    Numerics,
    Ragged,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.attention.batches import Row, rows_of
from opsocket_conformance.operators.attention.distributions import Heads, draw
from opsocket_conformance.operators.attention.oracle import Problem, visible
from opsocket_conformance.operators.attention.paging import lay_out
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.cache.formats import cache_spec

if TYPE_CHECKING:
    from opsocket_conformance.operators.attention.knobs import Attention

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

SCALE = 1.25
"""Times 1 / sqrt(D): not the scale that everyone assumes."""

_ROWS_BETWEEN = 2  # NaN rows after each request's contiguous keys and values


@dataclass(eq=False)
class Scene:
    """q f32[T, Hq, D]; keys, values per request f32[kv_len, Hkv, D]; slots per request i64[kv_len], -1 where unwritten.

    layout: which of the session's. latent: values are the first channels of keys.
    """

    request: Request
    batch: AttentionBatch
    q: Float32
    keys: list[Float32]
    values: list[Float32]
    slots: list[Int64]
    sinks: Float32 | None
    slopes: Float32 | None
    tree_mask: npt.NDArray[np.uint8] | None
    layout: int
    latent: bool

    @property
    def spec(self) -> AttentionSpec:
        assert isinstance(self.request.spec, AttentionSpec)
        return self.request.spec

    def problem(self, keys: Sequence[Float64], values: Sequence[Float64]) -> Problem:
        """The oracle's problem over keys and values as the cache holds them."""
        cache = self.request.cache
        return Problem(
            self.spec,
            self.batch,
            self.q.astype(np.float64),
            keys,
            values,
            None if self.sinks is None else self.sinks.astype(np.float64),
            None if self.slopes is None else self.slopes.astype(np.float64),
            self.tree_mask,
            cache is not None and any(fmt is not None and fmt.is_quantized for fmt in (cache.k, cache.v)),
        )

    def operands(self, bench: Bench) -> dict[str, Array]:
        """The optional inputs of `run`, on the device."""
        given = {"sinks": self.sinks, "alibi": self.slopes, "tree_mask": self.tree_mask}
        return {name: bench.put(name, values) for name, values in given.items() if values is not None}


def build(check: Attention, rng: np.random.Generator) -> Scene:
    """The scene of a case."""
    rows, dv = rows_of(check.batch), check.dv or check.d
    spec = _spec(check, dv)
    heads = Heads(check.hq, check.hkv, check.d, dv, check.q, check.left, check.bs or 16, check.cap)
    drawn = draw(check.x, rng, heads, rows)
    kv_dtype = check.q if check.bs else check.kv or check.q
    q = round_to(drawn.q, check.q)
    keys, values = ([round_to(part, kv_dtype) for part in parts] for parts in (drawn.keys, drawn.values))
    if check.latent:
        values = _within(keys, values, check.x)
    for number, row in enumerate(rows):
        common = row.shared // check.bs * check.bs if check.bs else 0
        keys[number][:common], values[number][:common] = keys[0][:common], values[0][:common]
    sinks = rng.normal(1.0, 1.0, check.hq).astype(np.float32) if check.sinks else None
    slopes = np.exp2(-6.0 * (np.arange(check.hq) + 1) / check.hq).astype(np.float32) if check.alibi else None
    lengths, tree_mask = _lengths(rng, rows, check)
    batch = AttentionBatch(**lengths)
    scene = Scene(Request(spec), batch, q, keys, values, [], sinks, slopes, tree_mask, check.layout, check.latent)
    bounds = Bounds(len(q) + 8, len(rows) + 1, 160, 32768)
    if not check.bs:
        held = np.array([row.kv_len + _ROWS_BETWEEN for row in rows], np.int64)
        lengths["kv_indptr"] = np.concatenate([[0], np.cumsum(held)]).astype(np.int64)
        scene.request, scene.batch = Request(spec, bounds=bounds), AttentionBatch(**lengths)
        return scene
    scene.request, scene.batch = Request(spec, _cache(check, 1, dv), bounds=bounds), AttentionBatch(**lengths)
    page(scene, rows, rng)
    return scene


def _within(keys: list[Float32], values: list[Float32], x: str) -> list[Float32]:
    """Values that are the first channels of keys. One-hot ones stay what they are; else they are what K has there."""
    width = values[0].shape[-1] if values else 0
    for k, v in zip(keys, values, strict=True):
        if x == "onehot":
            k[..., :width] = v
    return [k[..., :width] for k in keys]


def _cache(check: Attention, num_blocks: int, dv: int) -> CacheSpec:
    return cache_spec(check.kv or check.q, num_blocks, check.bs, check.hkv, check.d, dv, check.latent)


def page(scene: Scene, rows: Sequence[Row], rng: np.random.Generator) -> None:
    """Lay the scene's tokens out in pages of their own, or in others than they had."""
    cache = scene.request.cache
    assert cache is not None
    problem = scene.problem([], [])
    live = [np.asarray(visible(problem, number).any(axis=0)) for number in range(len(rows))]
    paging = lay_out(rng, rows, cache.block_size, live)
    scene.request = replace(scene.request, cache=replace(cache, num_blocks=paging.num_blocks))
    scene.batch = replace(scene.batch, block_table=paging.table)
    scene.slots = paging.slots


def _spec(check: Attention, dv: int) -> AttentionSpec:
    return AttentionSpec(
        num_q_heads=check.hq,
        num_kv_heads=check.hkv,
        head_dim_qk=check.d,
        head_dim_vo=dv,
        scale=SCALE / np.sqrt(check.d),
        mask=cast(Any, check.mask),  # the spec itself validates these words
        window_left=check.left,
        window_right=check.right,
        softcap=check.cap,
        alibi=check.alibi,
        sinks=check.sinks,
        q_dtype=check.q,
        kv_dtype=check.kv or check.q if not check.bs else "f32",
        out_dtype=check.out or check.q,
        numerics=Numerics(*cast(Any, (check.prob, check.exp, check.tanh, check.acc, check.step, check.deq, check.snk))),
        want_lse=check.lse,
    )


def _lengths(
    rng: np.random.Generator, rows: Sequence[Row], check: Attention
) -> tuple[dict[str, Any], npt.NDArray[np.uint8] | None]:
    """The fields of a batch that do not depend on where keys lie, and the tree mask."""
    q_lens = np.array([row.q_len for row in rows], np.int64)
    kv_lens = np.array([row.kv_len for row in rows], np.int64)
    start = np.array([row.start for row in rows], np.int32)
    lengths: dict[str, Any] = {
        "q_indptr": np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32),
        "kv_lens": kv_lens.astype(np.int32),
        "host_exact": check.exact,
    }
    if start.any():
        lengths["kv_start"] = start
    if check.mask == "tree":
        return _tree(rng, q_lens, kv_lens, start, lengths)
    if any(row.ahead for row in rows):
        ahead = np.array([row.ahead for row in rows], np.int64)
        lengths["q_start"] = (start + kv_lens - q_lens - ahead).astype(np.int32)
    return lengths, None


def _tree(
    rng: np.random.Generator, q_lens: Int64, kv_lens: Int64, start: npt.NDArray[np.int32], lengths: dict[str, Any]
) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Random trees: every new token sees itself and its ancestors; siblings share a position. Bytes that no bit of the
    mask falls into, and the bits after a request's last, are ones."""
    mask_parts, positions, starts = [], [], [0]
    for q_len, kv_len, first in zip(q_lens, kv_lens, start, strict=True):
        parent = [int(rng.integers(-1, i)) if i else -1 for i in range(q_len)]
        seen = np.zeros((q_len, q_len), bool)
        depth = np.zeros(q_len, np.int64)
        for i in range(q_len):
            seen[i, i] = True
            if parent[i] >= 0:
                seen[i] |= seen[parent[i]]
                depth[i] = depth[parent[i]] + 1
        count = -(-q_len * q_len // 8) + 1
        bits = np.ones(8 * count, np.uint8)
        bits[: q_len * q_len] = seen.ravel()
        mask_parts.append(np.packbits(bits, bitorder="little"))
        starts.append(starts[-1] + count)
        positions.append(first + kv_len - q_len + depth)
    lengths["mask_indptr"] = np.array(starts, np.int64)
    lengths["q_positions"] = np.concatenate([*positions, np.empty(0, np.int64)]).astype(np.int32)
    return lengths, np.concatenate([*mask_parts, np.empty(0, np.uint8)])


def fill(bench: Bench, scene: Scene) -> tuple[Cache | Ragged, list[Float64], list[Float64]]:
    """Keys and values on the device, and what they are there, per request f64[kv_len, Hkv, D].

    A quantized cache is read back first and held against the pinned quantizer.
    """
    keys, values = ([part.astype(np.float64) for part in parts] for parts in (scene.keys, scene.values))
    if scene.request.cache is None:
        heads, d, dv = scene.spec.num_kv_heads, scene.spec.head_dim_qk, scene.spec.head_dim_vo
        k = bench.put("k", _with_gaps(scene.keys, (heads, d)), scene.spec.kv_dtype)
        if scene.latent:
            return Ragged(k, k[:, :, :dv]), keys, values
        return Ragged(k, bench.put("v", _with_gaps(scene.values, (heads, dv)), scene.spec.kv_dtype)), keys, values
    return _fill_cache(bench, scene, scene.request.cache, keys, values)


def _with_gaps(parts: Sequence[Float32], width: tuple[int, int]) -> Float32:
    """All requests' rows f32[..., *width], NaN rows after each."""
    gap = np.full((_ROWS_BETWEEN, *width), np.nan, np.float32)
    return np.concatenate([gap[:0], *(piece for part in parts for piece in (part, gap))])


def _fill_cache(
    bench: Bench, scene: Scene, spec: CacheSpec, keys: list[Float64], values: list[Float64]
) -> tuple[Cache, list[Float64], list[Float64]]:
    slots = np.concatenate([*scene.slots, np.empty(0, np.int64)])
    width = (spec.num_kv_heads, spec.head_dim_k), (spec.num_kv_heads, spec.head_dim_v)
    k = np.concatenate([*scene.keys, np.empty((0, *width[0]), np.float32)])
    v = np.concatenate([*scene.values, np.empty((0, *width[1]), np.float32)])
    unique, first = np.unique(slots, return_index=True)
    once = first[unique >= 0]
    scales = caches.calibrate(spec, k, v)
    cache = caches.allocate(bench, spec, scene.spec.q_dtype, scales, scene.layout)
    cache = caches.write(bench, cache, scene.spec.q_dtype, slots[once], k[once], v[once])
    stored = caches.expected(spec, k, v, scales)
    if any(fmt is not None and fmt.is_quantized for fmt in (spec.k, spec.v)):
        written = slots >= 0
        got = caches.read(bench, cache, slots[written])
        for part, name, values_read in zip(stored, ("k", "v"), got, strict=True):
            as_held = part.values
            as_held[written] = caches.judge(bench, name, values_read, part.rows(written)).values
            _split(as_held, keys if name == "k" else values)
    else:
        _split(stored[0].values, keys)
        _split(stored[1].values, values)
    return cache, keys, values


def _split(joined: Float64, parts: list[Float64]) -> None:
    """Rows back to their requests, in place."""
    start = 0
    for number, part in enumerate(parts):
        parts[number] = joined[start : start + len(part)]
        start += len(part)
