"""The four operators over a cache, in every format."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case, Tier
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.attention.probes import FP8, INT4, INT8
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite

_SMOKE = ("", INT8[0], INT8[1], INT4[0], FP8[0])


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for kv in ("", *INT8, *INT4, *FP8):
            tier: Tier = "smoke" if kv in _SMOKE else "default"
            yield Case(CacheWrite(dtype=dtype, kv=kv), 0, tier)
            for x in ("ties", "even", "range", "nan"):
                yield Case(CacheWrite(dtype=dtype, kv=kv, x=x))
            for to in DTYPES:
                yield Case(CacheRead(dtype=dtype, kv=kv, to=to), 0, tier if to == dtype else "default")
            for how in ("overlap", "swap", "across"):
                yield Case(CacheMove(dtype=dtype, kv=kv, how=how), 0, tier if how == "overlap" else "default")
            for how in ("rotate", "across"):
                yield Case(CacheCopyBlocks(dtype=dtype, kv=kv, how=how), 0, tier if how == "across" else "default")
    yield from _shapes()
    yield from _conversions()


def _conversions() -> Iterator[Case]:
    """Caches of floats that are narrower than, or other than, what is written and read; and NaN in them."""
    for dtype in DTYPES:
        for kv in DTYPES:
            if kv != dtype:
                yield Case(CacheWrite(dtype=dtype, kv=kv))
                yield Case(CacheWrite(hkv=2, d=80, dv=96, bs=24, dtype=dtype, kv=kv))
                yield Case(CacheRead(dtype=dtype, kv=kv, to=dtype))
        for kv in ("", *FP8):
            yield Case(CacheRead(dtype=dtype, kv=kv, nan=True))
            yield Case(CacheRead(dtype=dtype, kv=kv, to=dtype, nan=True))


def _shapes() -> Iterator[Case]:
    """Other head sizes and block sizes; formats that no profile asks for."""
    for kv in _SMOKE:
        for hkv, d, dv, bs in ((1, 128, 0, 1), (8, 80, 96, 128), (5, 256, 128, 16), (2, 88, 0, 24)):
            yield Case(CacheWrite(hkv, d, dv, bs, kv=kv))
            yield Case(CacheMove(hkv, d, dv, bs, kv=kv))
            yield Case(CacheCopyBlocks(hkv, d, dv, bs, kv=kv))
    for kv in ("i2.token_head", "f8e4m3fnuz", "f8e5m2.tensor", "f16", "f32", "i8.channel+i4.token_head", "i4.tensor"):
        yield Case(CacheWrite(kv=kv))
        yield Case(CacheWrite(kv=kv, x="range"))
    for kv in ("i8.token_head.f32.zero", "i4.channel.f32.zero"):  # every backend denies these
        yield from (Case(CacheWrite(dtype=dtype, kv=kv)) for dtype in DTYPES)
    yield Case(CacheWrite(layout=1))
