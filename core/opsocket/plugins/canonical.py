"""The requests that every plugin is asked when it is loaded: the basics of a decoder, in two float types.

They are not a promise that a backend serves them. They find a `supports` that raises, or that names a kernel of
another operator or an unfinished one, before somebody's model does.
"""

from __future__ import annotations

import functools

from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    AttentionSpec,
    Bounds,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    EmbeddingSpec,
    KVFormat,
    MatmulSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleSpec,
    SiluMulSpec,
    Spec,
    TakeRowsSpec,
)

_HEADS, _KV_HEADS, _HEAD_DIM, _WIDTH, _VOCABULARY = 8, 4, 64, 512, 1024
_BOUNDS = Bounds(max_tokens=64, max_batch=4, max_q_len=64, max_kv_len=256)


@functools.cache
def canonical_requests() -> tuple[Request, ...]:
    """One small request for each operator of a decoder step, in f32 and in f16."""
    return tuple(request for dtype in ("f32", "f16") for request in _requests(dtype))


def _requests(dtype: str) -> tuple[Request, ...]:
    form = KVFormat("f32" if dtype == "f32" else "f16")
    cache = CacheSpec(16, 16, _KV_HEADS, _HEAD_DIM, _HEAD_DIM, form, form)
    attention = AttentionSpec(
        _HEADS, _KV_HEADS, _HEAD_DIM, _HEAD_DIM, _HEAD_DIM**-0.5, q_dtype=dtype, kv_dtype=dtype, out_dtype=dtype
    )
    on_cache: tuple[Spec, ...] = (
        attention,
        CacheWriteSpec(dtype),
        CacheReadSpec(dtype),
        CacheMoveSpec(),
        CacheCopyBlocksSpec(),
    )
    plain: tuple[Spec, ...] = (
        attention,
        MatmulSpec(dtype, _WIDTH, _WIDTH, dtype, dtype),
        MatmulSpec("q8_0", _WIDTH, _WIDTH, dtype, dtype),
        EmbeddingSpec(dtype, _VOCABULARY, _WIDTH, dtype),
        RMSNormSpec(_WIDTH, 1e-5, dtype),
        RopeSpec(_HEADS, _HEAD_DIM, _HEAD_DIM, 10000.0, dtype=dtype),
        SiluMulSpec(_WIDTH, dtype),
        AddSpec(_WIDTH, dtype),
        TakeRowsSpec(_WIDTH, dtype),
        ArgmaxSpec(_VOCABULARY, dtype),
        SampleSpec(_VOCABULARY, dtype),
    )
    return tuple(Request(spec, cache, None, _BOUNDS) for spec in on_cache) + tuple(
        Request(spec, None, None, _BOUNDS) for spec in plain
    )
