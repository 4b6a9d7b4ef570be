"""The four cache operators: codes as the pinned quantizer has them, and nothing touched that should not be."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsocket.operators import (
    BlockPairs,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    KVFormat,
    MoveBatch,
    Request,
    ResourceError,
    SlotBatch,
    Unsupported,
)

STATIC = {"tensor": (1,), "head": (3,), "channel": (3, 8)}
KV_FORMATS = [
    KVFormat("f32"),
    KVFormat("f16"),
    KVFormat("bf16"),
    KVFormat("f8e4m3fn"),
    KVFormat("f8e5m2"),
    KVFormat("f8e4m3fnuz"),
    *(
        KVFormat(code, granularity)
        for code in ("i8", "i4", "i2", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2")
        for granularity in ("token_head", "tensor", "head", "channel")
    ),
    *(KVFormat(code, "token_head", "f16") for code in ("i8", "i4", "i2", "f8e4m3fn")),
]
FORMAT_IDS = [f"{f.code}-{f.granularity}-{f.scale_dtype}" for f in KV_FORMATS]
_FP8 = {"f8e4m3fn": (4, 3, 7), "f8e4m3fnuz": (4, 3, 8), "f8e5m2": (5, 2, 15)}


def _fp8_values(code: str) -> list[Fraction]:
    """Every finite value of at least 0, rising; an even index has an even significand."""
    exponents, mantissa, bias = _FP8[code]
    values = []
    for bits in range(1 << (exponents + mantissa)):
        e, m = bits >> mantissa, bits & ((1 << mantissa) - 1)
        if (code == "f8e4m3fn" and bits == 0x7F) or (code == "f8e5m2" and e == 31):
            break
        scale = Fraction(2) ** (max(e, 1) - bias - mantissa)
        values.append((m + ((1 << mantissa) if e else 0)) * scale)
    return values


def _to_fp8(x: float, code: str) -> float:
    """Nearest value, ties to the even significand, saturated; exact rational arithmetic."""
    values = _fp8_values(code)
    magnitude = Fraction(abs(x))
    best = min(range(len(values)), key=lambda i: (abs(values[i] - magnitude), i % 2))
    return float(np.copysign(float(values[best]), x))


def _pinned(x: np.ndarray, fmt: KVFormat, static: np.ndarray | None) -> np.ndarray:
    """What a cache must give back for f32 x [T, H, D]: `KVFormat`'s docstring, one element at a time."""
    out = np.zeros(x.shape, np.float32)
    for t, h, d in np.ndindex(x.shape):
        scale = np.float32(1)
        if fmt.granularity == "token_head":
            scale = np.max(np.abs(x[t, h])) / np.float32(fmt.max_code)
            scale = scale if fmt.scale_dtype == "f32" else np.float32(np.float16(scale))
        elif static is not None:
            scale = {"tensor": static[0], "head": static[h % len(static)], "channel": static[h % len(static)]}[
                fmt.granularity
            ]
            scale = scale[d] if fmt.granularity == "channel" else scale
        ratio = np.float32(0) if scale == 0 else x[t, h, d] / scale
        if fmt.code in _FP8:
            code = np.float32(_to_fp8(float(ratio), fmt.code))
        else:
            code = np.float32(max(-fmt.max_code, min(fmt.max_code, round(float(ratio)))))
        out[t, h, d] = code * scale
    return out


def _spec(fmt: KVFormat, num_blocks: int = 5, **knobs: Any) -> CacheSpec:
    return CacheSpec(
        **{
            "num_blocks": num_blocks,
            "block_size": 4,
            "num_kv_heads": 3,
            "head_dim_k": 8,
            "head_dim_v": 8,
            "k": fmt,
            "v": fmt,
        }
        | knobs
    )


def _scales(rng: np.random.Generator, fmt: KVFormat) -> dict[str, np.ndarray]:
    if not fmt.is_static:
        return {}
    shape = STATIC[fmt.granularity]
    return {n: (rng.random(shape) * 0.1 + 0.01).astype(np.float32) for n in ("k_scale", "v_scale")}


def _write(session: Any, cache: Any, k: np.ndarray, v: np.ndarray, slots: Any, dtype: str = "f32") -> None:
    plan = session.plan(Request(CacheWriteSpec(dtype), cache.spec), SlotBatch(np.asarray(slots)))
    assert plan.run(cache, session.upload(k, dtype), session.upload(v, dtype)) is cache


def _read(session: Any, cache: Any, slots: Any, dtype: str = "f32") -> tuple[np.ndarray, np.ndarray]:
    plan = session.plan(Request(CacheReadSpec(dtype), cache.spec), SlotBatch(np.asarray(slots)))
    k, v = plan.run(cache)
    return session.download(k), session.download(v)


def _bytes(cache: Any) -> dict[str, np.ndarray]:
    return {name: plane.view(-1).view(torch.uint8).numpy().copy() for name, plane in cache.planes.items()}


@pytest.mark.parametrize("fmt", KV_FORMATS, ids=FORMAT_IDS)
def test_reads_back_what_the_pinned_quantizer_stores(session: Any, poisoned_cache: Any, fmt: KVFormat):
    rng = np.random.default_rng(11)
    scales = _scales(rng, fmt)
    cache = poisoned_cache(_spec(fmt), **scales)
    k, v = rng.standard_normal((2, 9, 3, 8)).astype(np.float32)
    k[0, 1], v[3] = 0.0, 0.0
    k[2] *= 1e4  # saturates where scales are static, and in fp8 without a scale
    v[4] *= 1e-4
    slots = rng.permutation(20)[:9]
    _write(session, cache, k, v, slots)
    got_k, got_v = _read(session, cache, slots)
    if not fmt.is_quantized:
        np.testing.assert_array_equal(got_k, session.download(session.upload(k, fmt.code)))
        np.testing.assert_array_equal(got_v, session.download(session.upload(v, fmt.code)))
        return
    np.testing.assert_array_equal(got_k, _pinned(k, fmt, scales.get("k_scale")))
    np.testing.assert_array_equal(got_v, _pinned(v, fmt, scales.get("v_scale")))


@pytest.mark.parametrize("code", ["f8e4m3fn", "f8e4m3fnuz", "f8e5m2"])
def test_fp8_rounds_to_even_saturates_and_keeps_nan(session: Any, poisoned_cache: Any, code: str):
    values = [float(x) for x in _fp8_values(code)]
    middles = [(a + b) / 2 for a, b in pairwise(values)]
    points = np.array(values + middles + [np.nextafter(np.float32(m), np.float32(9e9)) for m in middles], np.float32)
    points = np.concatenate([points, -points, [1e30, -1e30, np.inf, -np.inf, np.nan]]).astype(np.float32)
    points = np.pad(points, (0, -len(points) % 24)).reshape(-1, 3, 8)
    cache = poisoned_cache(_spec(KVFormat(code), num_blocks=len(points)))
    _write(session, cache, points, points, np.arange(len(points)))
    got, _ = _read(session, cache, np.arange(len(points)))
    top = values[-1]
    want = [x if np.isnan(x) else _to_fp8(float(np.clip(x, -top, top)), code) for x in points.ravel()]
    np.testing.assert_array_equal(got.ravel(), np.array(want, np.float32))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_writes_and_reads_16_bit_activations(session: Any, poisoned_cache: Any, dtype: str):
    rng = np.random.default_rng(12)
    fmt = KVFormat("i8", "token_head")
    cache = poisoned_cache(_spec(fmt))
    k, v = rng.standard_normal((2, 6, 3, 8)).astype(np.float32)
    _write(session, cache, k, v, np.arange(6), dtype)
    got, _ = _read(session, cache, np.arange(6), dtype)
    rounded = session.download(session.upload(k, dtype))
    want = session.download(session.upload(_pinned(rounded, fmt, None), dtype))
    np.testing.assert_array_equal(got, want)


@given(st.lists(st.integers(-1, 19), max_size=12, unique_by=lambda s: s if s >= 0 else object()), st.integers(0, 9))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_writes_its_slots_and_no_other_byte(session: Any, poisoned_cache: Any, slots: list[int], extra: int):
    rng = np.random.default_rng(extra)
    fmt = KVFormat("i4", "token_head", "f16")
    cache = poisoned_cache(_spec(fmt))
    k, v = rng.standard_normal((2, len(slots) + extra, 3, 8)).astype(np.float32)
    _write(session, cache, k, v, np.array(slots, np.int64))
    kept = [i for i, s in enumerate(slots) if s >= 0]
    got, _ = _read(session, cache, [slots[i] for i in kept] or np.zeros(0, int))
    np.testing.assert_array_equal(got, _pinned(k[kept], fmt, None))
    untouched = np.setdiff1d(np.arange(20), slots)
    for plane in cache.planes.values():
        rows = plane.flatten(1, 2)[:, untouched].contiguous()
        assert (rows.view(-1).view(torch.uint8) == 0xFF).all()


@given(st.permutations(range(20)), st.integers(0, 20), st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_move_is_as_if_buffered(session: Any, poisoned_cache: Any, order: list[int], count: int, within: bool):
    rng = np.random.default_rng(count)
    spec = _spec(KVFormat("i8", "token_head"), v=KVFormat("bf16"))
    src = poisoned_cache(spec)
    _write(session, src, *rng.standard_normal((2, 20, 3, 8)).astype(np.float32), np.arange(20))
    dst = src if within else poisoned_cache(spec)
    source = rng.integers(0, 20, count)
    want_k, want_v = _read(session, src, source)
    batch = MoveBatch(source, np.array(order[:count], np.int64))
    assert session.plan(Request(CacheMoveSpec(), spec), batch).run(src, dst) is dst
    got_k, got_v = _read(session, dst, order[:count] or np.zeros(0, int))
    np.testing.assert_array_equal(got_k, want_k)
    np.testing.assert_array_equal(got_v, want_v)


def test_blocks_are_copied_whole_and_as_if_buffered(session: Any, poisoned_cache: Any):
    rng = np.random.default_rng(13)
    small, large = _spec(KVFormat("f8e4m3fn")), _spec(KVFormat("f8e4m3fn"), num_blocks=9)
    host, device = poisoned_cache(large), poisoned_cache(small)
    _write(session, device, *rng.standard_normal((2, 20, 3, 8)).astype(np.float32), np.arange(20))
    want, _ = _read(session, device, [*range(16, 20), *range(4, 8)])
    plan = session.plan(Request(CacheCopyBlocksSpec(), large), BlockPairs(np.array([[4, 8], [1, 0]])))
    plan.run(device, host)
    np.testing.assert_array_equal(_read(session, host, [*range(32, 36), *range(4)])[0], want)
    swap = session.plan(Request(CacheCopyBlocksSpec(), small), BlockPairs(np.array([[4, 1], [1, 4]])))
    swap.run(device, device)
    np.testing.assert_array_equal(_read(session, device, [*range(4, 8), *range(16, 20)])[0], want)


def test_codes_are_not_moved_under_other_static_scales(session: Any, poisoned_cache: Any):
    spec = _spec(KVFormat("i8", "tensor"))
    a = poisoned_cache(spec, k_scale=np.array([1.0], np.float32), v_scale=np.array([1.0], np.float32))
    b = poisoned_cache(spec, k_scale=np.array([2.0], np.float32), v_scale=np.array([1.0], np.float32))
    before = _bytes(b)
    with pytest.raises(ContractError) as error:
        session.plan(Request(CacheMoveSpec(), spec), MoveBatch(np.array([0]), np.array([1]))).run(a, b)
    assert error.value.argument == "dst.k_scale"
    with pytest.raises(ContractError):
        session.plan(Request(CacheCopyBlocksSpec(), spec), BlockPairs(np.array([[0, 1]]))).run(a, b)
    assert all((before[n] == x).all() for n, x in _bytes(b).items())


def test_an_updated_plan_does_not_follow_the_callers_array(session: Any, poisoned_cache: Any):
    cache, slots = poisoned_cache(_spec(KVFormat("f32"))), np.array([3, 5])
    k = np.ones((2, 3, 8), np.float32)
    plan = session.plan(Request(CacheWriteSpec(), cache.spec), SlotBatch(slots))
    slots[:] = 0
    plan.run(cache, session.upload(k), session.upload(k))
    assert (_read(session, cache, [3, 5])[0] == 1).all()
    assert np.isnan(_read(session, cache, [0])[0]).all()


@pytest.mark.parametrize("scales", [{}, {"k_scale": np.ones(3, np.float32), "v_scale": np.ones(1, np.float32)}])
def test_static_scales_are_checked(session: Any, scales: dict[str, np.ndarray]):
    with pytest.raises(ContractError) as error:
        session.allocate_cache(_spec(KVFormat("i8", "tensor")), **scales)
    assert error.value.argument == "k_scale"


def test_scales_that_nothing_uses_are_refused(session: Any):
    with pytest.raises(ContractError) as error:
        session.allocate_cache(_spec(KVFormat("f16")), v_scale=np.ones(1, np.float32))
    assert error.value.argument == "v_scale"


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_is_a_positive_number(session: Any, bad: float):
    scale, one = np.array([bad], np.float32), np.ones(1, np.float32)
    with pytest.raises(ContractError) as error:
        session.allocate_cache(_spec(KVFormat("i8", "tensor")), k_scale=one, v_scale=scale)
    assert error.value.argument == "v_scale"


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_a_large_cache_lies_in_memory_for_which_huge_pages_were_asked(session: Any):
    fmt = KVFormat("bf16")
    cache = session.allocate_cache(CacheSpec(256, 16, 8, 128, 128, fmt, fmt))
    for plane in cache.planes.values():
        assert "hg" in _mapping_flags(plane.data_ptr() + plane.nbytes // 2)


def _mapping_flags(address: int) -> list[str]:
    """What /proc says of the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            low, high = (int(end, 16) for end in first.split("-"))
            inside = low <= address < high
        elif inside and first == "VmFlags:":
            return rest.split()
    raise AssertionError("no such mapping")


def test_more_than_the_memory_is_a_resource_error(session: Any):
    with pytest.raises(ResourceError) as error:
        session.allocate_cache(_spec(KVFormat("f32"), num_blocks=1 << 40))
    assert error.value.need > error.value.have > 0


@pytest.mark.parametrize(
    ("cache", "field"),
    [
        (_spec(KVFormat("i8", "token_head", zero_point=True), v=KVFormat("f32")), "cache.k.zero_point"),
        (_spec(KVFormat("f32"), v=KVFormat("i4", "head", zero_point=True)), "cache.v.zero_point"),
        (_spec(KVFormat("i4", "head"), head_dim_k=7), "cache.head_dim_k"),
        (_spec(KVFormat("i2", "head"), head_dim_v=6), "cache.head_dim_v"),
    ],
)
def test_what_no_layout_holds_is_refused_everywhere_for_the_same_reason(session: Any, cache: CacheSpec, field: str):
    assert session.cache_layouts(cache) == ()
    with pytest.raises(Unsupported) as refused:
        session.allocate_cache(cache)
    fields = [r.field for r in refused.value.reasons]
    assert field in fields  # beside what is in the way of the other layouts
    assert set(fields) <= {field, "cache.block_size"}
    for spec in (CacheWriteSpec(), CacheReadSpec(), CacheMoveSpec(), CacheCopyBlocksSpec()):
        support = session.supports(Request(spec, cache))
        assert not support
        assert refused.value.reasons == tuple(r for r in support.reasons if r.field != "op")


def test_a_layout_of_someone_else_is_refused(session: Any):
    cache = _spec(KVFormat("f32"))
    (layout,) = session.cache_layouts(cache)
    assert session.allocate_cache(cache, layout).layout == layout
    assert session.supports(Request(CacheWriteSpec(), cache, layout))
    other = replace(layout, id="tiles")
    assert {r.field for r in session.supports(Request(CacheWriteSpec(), cache, other)).reasons} == {"layout"}
    with pytest.raises(Unsupported):
        session.allocate_cache(cache, other)


@pytest.mark.parametrize("fmt", KV_FORMATS, ids=FORMAT_IDS)
def test_a_layout_says_what_it_takes(session: Any, fmt: KVFormat):
    rng = np.random.default_rng(0)
    cache = session.allocate_cache(_spec(fmt), **_scales(rng, fmt))
    held = sum(p.numel() * p.element_size() for p in cache.planes.values())
    assert held == cache.layout.bytes_per_block * cache.spec.num_blocks
    assert {p.name: (p.shape, p.dtype) for p in cache.layout.planes} == {
        n: (session.describe(a).shape, session.describe(a).dtype) for n, a in cache.planes.items()
    }
