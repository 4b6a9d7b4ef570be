"""KV formats in the words of case ids: ``bf16``, ``i8.token_head.f16``, ``i8.channel+i4.token_head``. A fourth word,
``zero``, asks for a zero point, which version 1 does not pin: every backend has to refuse it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opsocket.operators import CacheSpec, KVFormat


def kv_formats(text: str) -> tuple[KVFormat, KVFormat]:
    """The formats of K and V; one text for both, or two joined by +."""
    k, _, v = text.partition("+")
    return _format(k), _format(v or k)


def _format(text: str) -> KVFormat:
    parts: list[Any] = text.split(".")
    plain = KVFormat(*parts[:3])
    return replace(plain, zero_point=True) if parts[3:] == ["zero"] else plain


def cache_spec(
    text: str, num_blocks: int, block_size: int, hkv: int, d: int, dv: int, latent: bool = False
) -> CacheSpec:
    """A cache in the formats that `text` names, of kind "latent" or "kv"."""
    k, v = kv_formats(text)
    if latent:
        return CacheSpec(num_blocks, block_size, hkv, d, dv, k, None, "latent")
    return CacheSpec(num_blocks, block_size, hkv, d, dv, k, v)
