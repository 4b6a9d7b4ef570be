"""Layout "tiles16" and its native kernels beside the planar layout and torch's: the same codes, wherever they lie."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import opsocket
from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    BlockPairs,
    Cache,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    MoveBatch,
    Request,
    Session,
    SlotBatch,
    Unsupported,
)
from opsocket_cpu.native import cache as native_cache
from opsocket_cpu.native.command import Op
from opsocket_cpu.native.library import absence, library

pytestmark = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")

FORMATS = [
    *(KVFormat(code) for code in ("f32", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2")),
    *(
        KVFormat(code, granularity)
        for code in ("i8", "i4", "i2", "f8e4m3fn", "f8e5m2")
        for granularity in ("tensor", "head", "channel", "token_head")
    ),
    *(KVFormat(code, "token_head", "f16") for code in ("i8", "i4", "i2", "f8e4m3fnuz")),
]
IDS = [f"{f.code}-{f.granularity}-{f.scale_dtype}" for f in FORMATS]
HEADS = 3


def _spec(fmt: KVFormat, dk: int, dv: int, num_blocks: int = 4, block_size: int = 32, v: Any = None) -> CacheSpec:
    return CacheSpec(num_blocks, block_size, HEADS, dk, dv, fmt, v or fmt)


def _scales(spec: CacheSpec) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"tensor": lambda d: (1,), "head": lambda d: (HEADS,), "channel": lambda d: (HEADS, d)}
    sides = (("k_scale", spec.k, spec.head_dim_k), ("v_scale", spec.v, spec.head_dim_v))
    return {
        name: (rng.uniform(1, 3, shapes[fmt.granularity](dim)) / fmt.max_code).astype(np.float32)
        for name, fmt, dim in sides
        if fmt is not None and fmt.is_static
    }


def _both(session: Session, spec: CacheSpec) -> tuple[Cache, Cache]:
    """A cache in tiles, all of whose bytes are 0xFF, and a planar one."""
    tiles, planar = (session.allocate_cache(spec, layout, **_scales(spec)) for layout in session.cache_layouts(spec))
    assert (tiles.layout.id, planar.layout.id) == ("tiles16", "planar")
    for plane in tiles.planes.values():
        plane.fill_(255)
    return tiles, planar


def _write(session: Session, cache: Cache, slots: Any, k: np.ndarray, v: np.ndarray, dtype: str = "f32") -> None:
    plan: Any = session.plan(Request(CacheWriteSpec(dtype), cache.spec, cache.layout), SlotBatch(np.asarray(slots)))
    assert plan.provider == {"tiles16": "native", "planar": "torch"}[cache.layout.id]
    plan.run(cache, session.upload(k, dtype), session.upload(v, dtype))


def _read(session: Session, cache: Cache, slots: Any = None, dtype: str = "f32") -> tuple[np.ndarray, np.ndarray]:
    slots = np.arange(cache.spec.num_slots) if slots is None else np.asarray(slots)
    plan: Any = session.plan(Request(CacheReadSpec(dtype), cache.spec, cache.layout), SlotBatch(slots))
    k, v = plan.run(cache)
    return session.download(k), session.download(v)


def _same(got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def _tokens(rng: np.random.Generator, spec: CacheSpec, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all sizes, with tokens of zeros and of one large number."""

    def draw(dim: int) -> np.ndarray:
        x = rng.standard_normal((count, HEADS, dim)) * np.exp2(rng.uniform(-12, 6, (count, HEADS, 1)))
        x[3::7] = 0
        x[5::11, :, 0] = 3e4
        return x.astype(np.float32)

    return draw(spec.head_dim_k), draw(spec.head_dim_v)


@pytest.fixture(params=[1, 2], scope="module")
def opened(request: Any) -> Any:
    with opsocket.open("cpu", threads=request.param) as found:
        yield found


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
@pytest.mark.parametrize(("dk", "dv", "dtype"), [(64, 64, "bf16"), (20, 36, "f32"), (132, 4, "f16")])
def test_tiles_hold_what_planes_hold(opened: Session, fmt: KVFormat, dk: int, dv: int, dtype: str):
    rng = np.random.default_rng(dk)
    spec = _spec(fmt, dk, dv)
    caches = _both(opened, spec)
    everything = rng.permutation(spec.num_slots)
    some = np.where(rng.random(90) < 0.3, -1, rng.permutation(spec.num_slots)[:90])
    for slots in (everything, some, some[:1]):
        k, v = _tokens(rng, spec, len(slots) + 2)
        for cache in caches:
            _write(opened, cache, slots, k, v, dtype)
    asked = rng.integers(0, spec.num_slots, 150)
    for to in ("f32", dtype):
        _same(_read(opened, caches[0], asked, to), _read(opened, caches[1], asked, to))


@pytest.mark.parametrize("fmt", FORMATS, ids=IDS)
@pytest.mark.parametrize("dim", [1, 7, 33])
def test_tiles_hold_any_head_size(opened: Session, fmt: KVFormat, dim: int):
    """As a planar cache does that has zeros after them, up to a size that it can hold."""
    rng = np.random.default_rng(dim)
    wide = -dim % 4
    narrow, padded = _spec(fmt, dim, dim), _spec(fmt, dim + wide, dim + wide)
    scales = _scales(narrow)
    tiles = opened.allocate_cache(narrow, **scales)
    assert tiles.layout.id == "tiles16"
    pad = ((0, 0), (0, 0), (0, wide))
    channels = {n: np.pad(s, pad[1:], constant_values=1) if s.ndim == 2 else s for n, s in scales.items()}
    planar = opened.allocate_cache(padded, opened.cache_layouts(padded)[1], **channels)
    k, v = _tokens(rng, narrow, narrow.num_slots)
    _write(opened, tiles, np.arange(narrow.num_slots), k, v)
    _write(opened, planar, np.arange(narrow.num_slots), np.pad(k, pad), np.pad(v, pad))
    want_k, want_v = _read(opened, planar)
    _same(_read(opened, tiles), (want_k[..., :dim], want_v[..., :dim]))


@pytest.mark.parametrize("code", ["f32", "f16", "bf16"])
def test_what_pads_a_written_tile_is_zero(opened: Session, code: str):
    spec = _spec(KVFormat(code), 5, 18)
    cache = _both(opened, spec)[0]
    slots = np.arange(spec.num_slots)
    _write(opened, cache, slots, *(np.ones((len(slots), HEADS, d), np.float32) for d in (5, 18)))
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[code]
    for name, dim in (("k", 5), ("v", 18)):
        held = cache.planes[name].view(dtype).float()
        assert set(held.unique().tolist()) <= {0.0, 1.0}
        assert int(held.sum()) == spec.num_slots * HEADS * dim


@pytest.mark.parametrize(
    "fmt", [KVFormat("f8e5m2"), KVFormat("f8e4m3fnuz", "token_head"), KVFormat("i8", "token_head")]
)
def test_nan_and_infinity_are_stored_as_in_planes(opened: Session, fmt: KVFormat):
    rng = np.random.default_rng(2)
    spec = _spec(fmt, 24, 24)
    caches = _both(opened, spec)
    k, v = _tokens(rng, spec, spec.num_slots)
    k[::5, :, 3], v[::3, 1, 20], k[1::5, 0, 0], v[2] = np.nan, np.nan, np.inf, -np.inf
    for cache in caches:
        _write(opened, cache, np.arange(spec.num_slots), k, v)
    _same(*(_read(opened, cache) for cache in caches))


def test_keys_and_values_come_with_any_token_stride(opened: Session):
    rng = np.random.default_rng(3)
    spec = _spec(KVFormat("bf16"), 16, 32)
    cache = _both(opened, spec)[0]
    fused = opened.upload(rng.standard_normal((40, HEADS * 48)).astype(np.float32))
    k, v = (x.unflatten(1, (HEADS, -1)) for x in fused.split([HEADS * 16, HEADS * 32], 1))
    plan: Any = opened.plan(Request(CacheWriteSpec("f32"), spec), SlotBatch(np.arange(40)))
    plan.run(cache, k, v)
    _same(_read(opened, cache, np.arange(40)), tuple(x.bfloat16().float().numpy() for x in (k, v)))


@given(
    st.lists(st.integers(-1, 127), max_size=40, unique_by=lambda s: s if s >= 0 else object()),
    st.sampled_from(
        [KVFormat("bf16"), KVFormat("i8", "head"), KVFormat("i4", "token_head"), KVFormat("i2", "channel")]
    ),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_write_leaves_every_other_slot_alone(session: Session, slots: list[int], fmt: KVFormat):
    rng = np.random.default_rng(len(slots))
    spec = _spec(fmt, 20, 12)
    caches = _both(session, spec)
    for targets in (np.arange(spec.num_slots), np.array(slots, np.int64)):
        k, v = _tokens(rng, spec, len(targets))
        for cache in caches:
            _write(session, cache, targets, k, v)
    _same(*(_read(session, cache) for cache in caches))


def _filled(session: Session, spec: CacheSpec, seed: int) -> Cache:
    cache = session.allocate_cache(spec, **_scales(spec))
    k, v = _tokens(np.random.default_rng(seed), spec, spec.num_slots)
    _write(session, cache, np.arange(spec.num_slots), k, v)
    return cache


@pytest.mark.parametrize(
    "fmt", [KVFormat("f32"), KVFormat("f16"), KVFormat("i8", "token_head"), KVFormat("i4", "head")]
)
@pytest.mark.parametrize("how", ["shift", "swap", "apart", "across"])
def test_a_move_is_as_if_buffered(opened: Session, fmt: KVFormat, how: str):
    rng = np.random.default_rng(4)
    spec = _spec(fmt, 40, 8, num_blocks=6, v=KVFormat("i2", "token_head"))
    cache, count = _filled(opened, spec, 5), spec.num_slots
    order = rng.permutation(count)
    source, target = {
        "shift": (np.arange(count - 1), np.arange(1, count)),
        "swap": (order, np.roll(order, 1)),
        "apart": (order[:90], order[90:180]),
        "across": (rng.integers(0, count, 150), order[:150]),
    }[how]
    target_cache = cache if how != "across" else _filled(opened, spec, 6)
    read, want = _read(opened, cache), _read(opened, target_cache)
    for old, new in zip(read, want, strict=True):
        new[target] = old[source]
    plan: Any = opened.plan(Request(CacheMoveSpec(), spec), MoveBatch(source, target))
    assert plan.run(cache, target_cache) is target_cache
    _same(_read(opened, target_cache), want)


def test_moves_of_more_than_a_thread_has_memory_for(opened: Session):
    """Tokens of more bytes, in all, than scratch memory; then more tokens than it has room for at all."""
    for spec in (_spec(KVFormat("f32"), 200, 56, num_blocks=100), _spec(KVFormat("i2", "token_head"), 4, 4, 1100)):
        cache = _filled(opened, spec, 7)
        want = _read(opened, cache)
        order = np.random.default_rng(8).permutation(spec.num_slots)
        plan: Any = opened.plan(Request(CacheMoveSpec(), spec), MoveBatch(np.arange(spec.num_slots), order))
        plan.run(cache, cache)
        _same(tuple(x[order] for x in _read(opened, cache)), want)


@pytest.mark.parametrize("num_blocks", [9, 40000])
def test_blocks_are_copied_as_if_buffered(opened: Session, num_blocks: int):
    spec = CacheSpec(num_blocks, 16, 1, 4, 4, KVFormat("i2", "token_head"), KVFormat("i2", "tensor"))
    cache = opened.allocate_cache(spec, v_scale=np.ones(1, np.float32))
    rng = np.random.default_rng(9)
    before = {
        name: torch.from_numpy(rng.integers(0, 256, plane.shape, np.uint8)) for name, plane in cache.planes.items()
    }
    for name, plane in cache.planes.items():
        plane.copy_(before[name])
    order = rng.permutation(num_blocks)
    pairs = np.stack([order, np.roll(order, 1)], 1)
    plan: Any = opened.plan(Request(CacheCopyBlocksSpec(), spec), BlockPairs(pairs))
    plan.run(cache, cache)
    for name, plane in cache.planes.items():
        assert (plane[pairs[:, 1]] == before[name][pairs[:, 0]]).all()


def test_blocks_go_to_a_cache_of_another_size(opened: Session):
    small, large = (_spec(KVFormat("bf16"), 128, 128, num_blocks=n, block_size=128) for n in (3, 8))
    src, dst = _filled(opened, small, 10), _filled(opened, large, 11)
    want, read = _read(opened, dst), _read(opened, src)
    pairs = np.array([[2, 7], [0, 1], [2, 4]])
    for old, new in zip(read, want, strict=True):
        for a, b in pairs:
            new[b * 128 : b * 128 + 128] = old[a * 128 : a * 128 + 128]
    plan: Any = opened.plan(Request(CacheCopyBlocksSpec(), large), BlockPairs(pairs))
    plan.run(src, dst)
    _same(_read(opened, dst), want)


def test_a_replay_writes_and_reads_its_own_batch(opened: Session):
    rng = np.random.default_rng(12)
    spec = _spec(KVFormat("i8", "token_head"), 16, 16)
    cache, twin = opened.allocate_cache(spec), opened.allocate_cache(spec)
    k, v = (opened.upload(rng.standard_normal((6, HEADS, 16)).astype(np.float32)) for _ in range(2))
    write: Any = opened.plan(Request(CacheWriteSpec(), spec), SlotBatch(np.array([5, 1, 90, 33, 34, 35])))
    read: Any = opened.plan(Request(CacheReadSpec(), spec), SlotBatch(np.array([1, 90, 35])))
    with opened.capture() as graph:
        write.run(cache, k, v)
        got = read.run(cache)
    for slots, asked in (([7, -1, 2], [2, 7]), ([127, 0, 1, 2, 3, 64], [3, 127, 3])):
        write.update(SlotBatch(np.array(slots)))
        read.update(SlotBatch(np.array(asked)))
        graph.replay()
        _write(opened, twin, slots, k.numpy()[: len(slots)], v.numpy()[: len(slots)])
        _same(tuple(x.numpy()[: len(asked)] for x in got), _read(opened, twin, asked))
    with pytest.raises(ContractError) as error:
        read.update(SlotBatch(np.array([1, 2, 3, 4])))
    assert error.value.argument == "slots"


def test_a_cache_of_the_other_layout_is_no_cache_of_the_first_choice(session: Session):
    spec = _spec(KVFormat("f32"), 8, 8)
    tiles, planar = _both(session, spec)
    one = session.upload(np.ones((1, HEADS, 8), np.float32))
    batches = {
        CacheWriteSpec(): (SlotBatch(np.array([0])), lambda plan: plan.run(planar, one, one)),
        CacheReadSpec(): (SlotBatch(np.array([0])), lambda plan: plan.run(planar)),
        CacheMoveSpec(): (MoveBatch(np.array([0]), np.array([1])), lambda plan: plan.run(tiles, planar)),
        CacheCopyBlocksSpec(): (BlockPairs(np.array([[0, 1]])), lambda plan: plan.run(planar, planar)),
    }
    for asked, (batch, run) in batches.items():
        with pytest.raises(ContractError, match="planar"):
            run(session.plan(Request(asked, spec), batch))
    assert not session.download(planar.planes["k"]).any()


def test_torch_takes_planes_and_says_so():
    with opsocket.open("cpu", operators={"cache_write": "torch"}) as pinned:
        spec = _spec(KVFormat("i4", "head"), 8, 8)
        planar = pinned.cache_layouts(spec)[1]
        assert pinned.supports(Request(CacheWriteSpec(), spec, planar)).provider == "torch"
        with pytest.raises(Unsupported) as refused:
            pinned.plan(Request(CacheWriteSpec(), spec))
        assert [(r.field, r.got, r.want) for r in refused.value.reasons] == [("layout", "tiles16", ("planar",))]


@pytest.mark.parametrize("fmt", [KVFormat("f32"), KVFormat("i4", "channel"), KVFormat("f8e4m3fn", "token_head")])
def test_torch_attends_over_tiles_as_over_planes(fmt: KVFormat, deal_blocks: Callable[..., Any]):
    rng = np.random.default_rng(13)
    spec, kv_lens = _spec(fmt, 24, 40, num_blocks=9), [70, 1, 33]
    table, slots = deal_blocks(rng, kv_lens, 32, 9)
    asked = AttentionSpec(HEADS * 2, HEADS, 24, 40, scale=0.2, want_lse=True)
    batch = AttentionBatch(np.array([0, 5, 6, 8]), np.array(kv_lens), table)
    q = rng.standard_normal((8, HEADS * 2, 24)).astype(np.float32)
    with opsocket.open("cpu", operators={"attention": "torch"}) as pinned:
        caches = _both(pinned, spec)
        everywhere = np.concatenate(slots)
        k, v = _tokens(rng, spec, len(everywhere))
        results = []
        for cache, tier in zip(caches, ("composed", "native"), strict=True):
            request = Request(asked, spec, cache.layout)
            assert (pinned.supports(request).provider, pinned.supports(request).tier) == ("torch", tier)
            _write(pinned, cache, everywhere, k, v)
            plan: Any = pinned.plan(request, batch)
            results.append(tuple(pinned.download(x) for x in plan.run(pinned.upload(q), cache)))
    for tiled, planar in zip(*results, strict=True):
        np.testing.assert_allclose(tiled, planar, rtol=1e-5, atol=1e-5)


def test_commands_are_as_long_here_as_in_the_library():
    found = library()
    assert found is not None
    commands = {
        Op.CACHE_WRITE: native_cache.CacheWriteCommand,
        Op.CACHE_READ: native_cache.CacheReadCommand,
        Op.CACHE_MOVE: native_cache.CacheMoveCommand,
        Op.CACHE_COPY_BLOCKS: native_cache.CacheCopyBlocksCommand,
    }
    assert {op: found.command_size(op) for op in commands} == {op: ctypes.sizeof(c) for op, c in commands.items()}
