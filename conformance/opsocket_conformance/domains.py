"""What fuzzing draws for each kind of case: values of its fields, the plainest first, towards which findings shrink.

hypothesis comes with the extra ``fuzz``; only the fuzzer imports this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from hypothesis import strategies as st

from opsocket.quantization import FORMATS, get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.add import Add
from opsocket_conformance.operators.argmax import Argmax
from opsocket_conformance.operators.attention.batches import BATCHES, Row, literal, rows_of
from opsocket_conformance.operators.attention.distributions import DISTRIBUTIONS
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.laws import LAWS, AttentionLaw
from opsocket_conformance.operators.attention.probes import FP8, INT4, INT8
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite
from opsocket_conformance.operators.matmul.dequantize import Dequantize
from opsocket_conformance.operators.matmul.embedding import Embedding
from opsocket_conformance.operators.matmul.grouped_matmul import GroupedMatmul
from opsocket_conformance.operators.matmul.matmul import Matmul
from opsocket_conformance.operators.matmul.quantize_activation import QuantizeActivation
from opsocket_conformance.operators.merge_states import MergeStates
from opsocket_conformance.operators.moe_combine import MoECombine
from opsocket_conformance.operators.moe_route import MoERoute
from opsocket_conformance.operators.moe_sort import MoESort
from opsocket_conformance.operators.rms_norm import RMSNorm
from opsocket_conformance.operators.rope import Rope
from opsocket_conformance.operators.sample import Sample
from opsocket_conformance.operators.silu_mul import SiluMul
from opsocket_conformance.operators.take_rows import TakeRows
from opsocket_conformance.preconditions.breaches import BREACHES
from opsocket_conformance.preconditions.negative import Negative

Fields = st.SearchStrategy[dict[str, Any]]

_FLAG = st.booleans()
_DTYPE = st.sampled_from(("f32", *(name for name in DTYPES if name != "f32")))
_KV = st.sampled_from(("", *INT8, *INT4, *FP8, "i8.channel+i4.token_head"))
_FORMAT = st.sampled_from(tuple(f.id for f in FORMATS))


def _often(usual: Any, *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """`usual` in half of the draws."""
    return st.just(usual) | st.one_of(*others)


# ---- attention

_HEAD_DIM = st.sampled_from((64, 80, 96, 128, 192, 256)) | st.integers(1, 160)
_KV_LEN = st.integers(0, 80) | st.integers(80, 400) | st.sampled_from((127, 128, 129, 511, 512, 513, 1024, 1025, 2049))
_BLOCK = st.sampled_from((16, 0, 1, 128)) | st.integers(1, 40)


@st.composite
def _batches(draw: st.DrawFn, tree: bool) -> str:
    """A batch of the suite, or rows of any lengths."""
    if draw(st.integers(0, 4)) == 4:
        small = [
            name
            for name, rows in BATCHES.items()
            if sum(r.kv_len for r in rows) < 2000 and (not tree or all(_is_plain(r) for r in rows))
        ]
        return draw(st.sampled_from(small))
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 6))):
        q_len, kv_len = draw(st.sampled_from((1, 1, 0)) | st.integers(1, 40)), draw(_KV_LEN)
        if tree:
            rows.append(Row(min(q_len, kv_len), kv_len))
            continue
        ahead = draw(_often(0, st.integers(0, min(kv_len, 40)))) if kv_len else 0
        most = min(kv_len, rows[0].kv_len) if rows else 0
        shared = draw(_often(0, st.integers(0, most))) if most else 0
        # Positions are not negative: queries before key 0 need a start.
        rows.append(Row(q_len, kv_len, ahead, shared, draw(_often(0, st.integers(1, 2000)))))
    return literal(rows)


def _is_plain(row: Row) -> bool:
    return row.q_len <= row.kv_len and not row.ahead


@st.composite
def _attention(draw: st.DrawFn) -> dict[str, Any]:
    mask = draw(st.sampled_from(("causal", "full", "tree")))
    hkv, group = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    d, bs = draw(_HEAD_DIM), draw(_BLOCK)
    latent, window = draw(st.integers(0, 9)) == 9, st.integers(0, 70)
    hkv = 1 if latent else hkv
    kv = draw(_often("", _KV)) if bs else ""
    return {
        "hq": hkv * group,
        "hkv": hkv,
        "d": d,
        "dv": draw(_often(0, st.integers(1, d))),
        "bs": bs,
        "q": draw(_DTYPE),
        "kv": kv,
        "out": draw(st.sampled_from(("", "f32"))),
        "batch": draw(_batches(mask == "tree")),
        "x": draw(st.sampled_from(tuple(DISTRIBUTIONS))),
        "mask": mask,
        "left": draw(_often(None, window)),
        "right": draw(_often(None, window)) if mask == "full" else None,
        "cap": draw(_often(None, st.sampled_from((5.0, 30.0, 50.0)))),
        "alibi": draw(_FLAG),
        "sinks": draw(_FLAG),
        "lse": draw(_FLAG),
        "prob": draw(st.sampled_from(("f32", "bf16", "f16"))),
        "exp": draw(st.sampled_from(("exact", "approx"))),
        "strided": draw(_FLAG),
        "fresh": draw(_FLAG),
        "latent": latent,
    }


@st.composite
def _attention_law(draw: st.DrawFn) -> dict[str, Any]:
    """Laws are about pages, and those that take queries one after the other about a causal order."""
    fields = draw(_attention().filter(lambda f: f["mask"] == "causal" and f["bs"] and _is_short(f["batch"])))
    for name in ("out", "strided", "fresh", "lse", "latent"):
        fields.pop(name)
    return fields | {"law": draw(st.sampled_from(tuple(LAWS)))}


def _is_short(batch: str) -> bool:
    rows = rows_of(batch)
    return 0 < sum(row.kv_len for row in rows) < 500 and all(row.q_len <= row.kv_len for row in rows)


# ---- caches

_CACHE: Final[dict[str, st.SearchStrategy[Any]]] = {
    "hkv": st.integers(1, 9),
    "d": _HEAD_DIM,
    "dv": _often(0, st.integers(1, 128)),
    "bs": st.sampled_from((16, 1, 128)) | st.integers(1, 40),
    "dtype": _DTYPE,
    "kv": _KV,
}


def _cache(**more: st.SearchStrategy[Any]) -> Fields:
    return st.fixed_dictionaries(_CACHE | more)


# ---- matrix products


@st.composite
def _weight(draw: st.DrawFn, most_n: int = 300, most_k: int = 1500) -> dict[str, Any]:
    """A format, and a shape that it can hold."""
    fmt = get_format(draw(_FORMAT))
    unit_n = 8 if fmt.packing in ("gptq_v1", "gptq_v2", "awq") else 1
    unit_k = math.lcm(fmt.super_block or fmt.block_k or 1, ACTIVATION_GROUP if fmt.activation == "i8_g32" else 1)
    n = unit_n * draw(st.integers(1, most_n // unit_n))
    return {"w": fmt.id, "n": n, "k": unit_k * draw(st.integers(1, max(most_k // unit_k, 1)))}


def _with_weight(weight: Fields, **others: st.SearchStrategy[Any]) -> Fields:
    return st.builds(lambda a, b: a | b, weight, st.fixed_dictionaries(others))


_KIND = st.sampled_from(("normal", "outliers", "extreme", "cancel"))

# ---- the rest

_ROWS, _WIDTH = st.integers(0, 40), st.integers(1, 1200)


@st.composite
def _rope(draw: st.DrawFn) -> dict[str, Any]:
    half = draw(st.integers(1, 64))
    rotary = draw(_often(0, st.integers(1, half).map(lambda n: 2 * n)))
    return {
        "t": draw(st.integers(2, 40)),
        "dtype": draw(_DTYPE),
        "heads": draw(st.integers(1, 9)),
        "d": 2 * half,
        "rotary": rotary,
        "theta": draw(st.sampled_from((10000.0, 500000.0, 1e6))),
        "interleaved": draw(_FLAG),
        "scaling": draw(st.sampled_from(("", "linear", "llama3", "yarn"))),
        "factors": draw(_FLAG),
        "far": draw(st.integers(1, 1 << 17)),
        "strided": draw(_FLAG),
    }


@st.composite
def _moe_route(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 128))
    return {
        "t": draw(_ROWS),
        "dtype": draw(_DTYPE),
        "experts": experts,
        "k": draw(st.integers(1, min(experts, 16))),
        "renormalize": draw(_FLAG),
        "x": draw(st.sampled_from(("normal", "ties", "peaky"))),
    }


@st.composite
def _moe_sort(draw: st.DrawFn) -> dict[str, Any]:
    experts = draw(st.integers(1, 400))
    return {
        "t": draw(st.integers(0, 40) | st.integers(41, 600)),
        "experts": experts,
        "k": draw(st.integers(1, min(experts, 16))),
        "x": draw(st.sampled_from(("normal", "same", "first", "last", "falling", "twice"))),
    }


def _of(**fields: st.SearchStrategy[Any]) -> Fields:
    return st.fixed_dictionaries(fields)


_BREACHES = tuple((call, breach) for call, breaches in BREACHES.items() for breach in breaches)

DOMAINS: Final[Mapping[type[Check], Fields]] = {
    Attention: _attention(),
    AttentionLaw: _attention_law(),
    MergeStates: _of(
        parts=st.integers(1, 20), rows=_ROWS, heads=st.integers(1, 20), d=_HEAD_DIM, dtype=_DTYPE,
        out=st.sampled_from(("", *DTYPES)), x=st.sampled_from(("normal", "far", "empty")),
    ),
    CacheWrite: _cache(x=st.sampled_from(("normal", "ties", "range", "nan"))),
    CacheRead: _cache(to=_DTYPE),
    CacheMove: _cache(how=st.sampled_from(("overlap", "swap", "across"))),
    CacheCopyBlocks: _cache(how=st.sampled_from(("rotate", "across"))),
    Matmul: _with_weight(
        _weight(), m=_ROWS, dtype=_DTYPE, out=st.sampled_from(("", "f32")), x=_KIND, bias=_FLAG, strided=_FLAG
    ),
    GroupedMatmul: _with_weight(
        _weight(100, 600), experts=st.integers(1, 9), m=_ROWS, dtype=_DTYPE, bias=_FLAG
    ),
    Embedding: _with_weight(_weight(100, 600), dtype=_DTYPE, t=st.integers(2, 40)),
    Dequantize: _with_weight(_weight(100, 600), dtype=_DTYPE, op=st.sampled_from(("matmul", "embedding"))),
    QuantizeActivation: _of(
        m=_ROWS, k=_WIDTH, dtype=_DTYPE, x=st.sampled_from(("normal", "outliers", "extreme", "cancel", "ties"))
    ),
    RMSNorm: _of(
        t=_ROWS, dtype=_DTYPE, width=_WIDTH, heads=st.integers(0, 5), residual=_FLAG, strided=_FLAG,
        eps=st.sampled_from((1e-5, 1e-6)), x=st.sampled_from(("normal", "small")),
    ).filter(lambda fields: not (fields["heads"] and fields["residual"])),
    Rope: _rope(),
    SiluMul: _of(t=_ROWS, dtype=_DTYPE, width=_WIDTH, x=st.sampled_from(("normal", "wide")), strided=_FLAG),
    Add: _of(t=_ROWS, dtype=_DTYPE, width=_WIDTH),
    TakeRows: _of(t=st.integers(2, 40), dtype=_DTYPE, width=st.integers(3, 1200)),
    MoERoute: _moe_route(),
    MoESort: _moe_sort(),
    MoECombine: _of(
        t=_ROWS, dtype=_DTYPE, width=_WIDTH, k=st.integers(1, 16), slots=st.sampled_from(("once", "shared")),
        x=st.sampled_from(("normal", "cancel", "tiny", "zeros", "special")), strided=_FLAG,
    ),
    Argmax: _of(
        b=st.integers(3, 20), v=st.integers(7, 4000), dtype=_DTYPE, x=st.sampled_from(("normal", "ties", "infinite"))
    ),
    Sample: _of(
        b=st.integers(1, 12), v=st.integers(20, 300), dtype=_DTYPE,
        how=st.sampled_from(("plain", "greedy", "top_k", "top_p", "min_p", "penalties", "all")),
    ),
    Negative: st.tuples(st.sampled_from(_BREACHES), _DTYPE).map(
        lambda drawn: {"call": drawn[0][0], "breach": drawn[0][1], "dtype": drawn[1]}
    ),
}  # fmt: skip
"""Every kind of case, and the fields that are drawn for it; the others stay as by default."""


def cases(kind: type[Check]) -> st.SearchStrategy[Case]:
    """Cases of one kind."""
    return st.builds(lambda fields, draw: Case(kind(**fields), draw), DOMAINS[kind], st.integers(0, 3))
