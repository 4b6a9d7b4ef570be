"""Latent attention: one vector per token that every query head reads, and whose first channels are the values.

What can go wrong here and nowhere else: values taken from the vector's end, or from all of it; the rotary channels left
out of the logits, of the scale, or of a move; a second scale for V; heads that do not fill a tile of query rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from opsocket_conformance.case import Case, Tier
from opsocket_conformance.cover import cover
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.laws import AttentionLaw
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite

_LARGE: Final[dict[str, Any]] = {"hkv": 1, "d": 576, "dv": 512, "latent": True}
_SMALL: Final[dict[str, Any]] = {"hkv": 1, "d": 80, "dv": 64, "latent": True}
_FORMATS: Final = ("i8.token_head", "i8.channel", "f8e4m3fn", "f8e4m3fn.token_head", "i4.token_head")
_KNOBS: Final[tuple[dict[str, Any], ...]] = (
    {"left": 7}, {"cap": 20.0, "x": "saturate"}, {"sinks": True, "lse": True}, {"alibi": True}, {"lse": True},
    {"mask": "full", "right": 5}, {"strided": True}, {"fresh": True}, {"out": "f32"}, {"bs": 0}, {"bs": 1}, {"bs": 64},
    {"prob": "bf16"}, {"layout": 1},
)  # fmt: skip


def cases() -> Iterator[Case]:
    for q in DTYPES:
        yield from _attention(q)
        yield from _cache(q)


def _attention(q: str) -> Iterator[Case]:
    yield Case(Attention(16, q=q, **_LARGE), 0, "smoke")
    batches = ("decode", "edges", "chunk", "prefill", "verify", "mixed")
    for choice in cover({"hq": (16, 5), "batch": batches, "x": ("normal", "onehot", "needle", "peaky")}):
        yield Case(Attention(q=q, **choice, **_LARGE))
    for batch in ("decode", "chunk", "verify"):
        yield Case(Attention(5, q=q, batch=batch, x="onehot", **_SMALL), 0, "smoke" if batch == "decode" else "default")
        for kv in _FORMATS:
            yield Case(Attention(16, q=q, kv=kv, batch=batch, **_LARGE if batch == "decode" else _SMALL))
    for knobs in _KNOBS:
        yield Case(Attention(5, q=q, batch="chunk", **_SMALL | knobs))
    yield Case(Attention(16, q=q, batch="long", **_LARGE))
    yield Case(Attention(5, q=q, batch="verify", mask="tree", **_LARGE))
    for law in ("permuted_pages", "moved_cache", "split_merge", "chunked"):
        yield Case(AttentionLaw(16, q=q, batch="verify" if law == "chunked" else "chunk", law=law, **_LARGE))


def _cache(dtype: str) -> Iterator[Case]:
    for kv in ("", *_FORMATS):
        for shape in (_LARGE, _SMALL):
            tier: Tier = "default" if kv or shape is _SMALL else "smoke"
            yield Case(CacheWrite(dtype=dtype, kv=kv, **shape), 0, tier)
            yield Case(CacheRead(dtype=dtype, kv=kv, **shape), 0, tier)
        yield Case(CacheWrite(dtype=dtype, kv=kv, x="ties", **_SMALL))
        shape = _SMALL if kv else _LARGE
        yield from (Case(CacheMove(dtype=dtype, kv=kv, how=how, **shape)) for how in ("overlap", "across"))
        yield from (Case(CacheCopyBlocks(dtype=dtype, kv=kv, how=how, **shape)) for how in ("rotate", "across"))
