"""Matrix products and table look-ups, over weights in every format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from opsocket.quantization import get_format
from opsocket_conformance.case import Case
from opsocket_conformance.cases.attention import DTYPES
from opsocket_conformance.checks.matmul import Dequantize, Embedding, GroupedMatmul, Matmul, QuantizeActivation

FORMATS: Final = (
    "f32", "f16", "bf16", "i8_channel", "i8_channel_a8", "q4_0", "q4_1", "q5_0", "q8_0", "q2_K", "q4_K", "q6_K",
    "i4_g32", "i4_g64", "i4_g128", "i4_g32_z", "i4_g128_z", "i2_g32", "i2_g64_z", "i2_g128",
    "gptq_v1_i4_g128", "gptq_v1_i4_g32_act", "gptq_v2_i4_g64", "gptq_v2_i4_g128_act", "awq_i4_g128", "awq_i4_g32",
)  # fmt: skip
"""Every format, and every family of formats in more than one group size."""

_SMOKE = (
    "f32",
    "f16",
    "bf16",
    "i8_channel_a8",
    "q4_0",
    "q8_0",
    "q4_K",
    "i4_g64",
    "i2_g32",
    "gptq_v2_i4_g64",
    "awq_i4_g128",
)


def cases() -> Iterator[Case]:
    for w in FORMATS:
        for dtype in DTYPES:
            yield from _matmuls(w, dtype)
        for dtype in DTYPES:
            yield Case(Embedding(w=w, dtype=dtype), 0, "smoke" if w == dtype else "default")
        yield Case(Dequantize(w=w), 0, "smoke" if w in _SMOKE else "default")
        yield Case(Dequantize(w=w, op="embedding"))
    yield from _activations()
    for dtype in DTYPES:
        for w in (dtype, "q8_0", "q4_K", "i4_g64", "i8_channel_a8"):
            yield Case(GroupedMatmul(w=w, dtype=dtype), 0, "smoke" if w == dtype else "default")
            yield Case(GroupedMatmul(experts=17, m=9, n=24, k=512, w=w, dtype=dtype, bias=True))
        yield Case(GroupedMatmul(experts=1, m=1, w=dtype, dtype=dtype))


def _matmuls(w: str, dtype: str) -> Iterator[Case]:
    smoke = w == dtype or (w in _SMOKE and dtype == "bf16")
    yield Case(Matmul(w=w, dtype=dtype), 0, "smoke" if smoke else "default")
    yield Case(Matmul(m=1, n=72, k=512, w=w, dtype=dtype, bias=True))
    yield Case(Matmul(m=37, n=136, k=256, w=w, dtype=dtype, strided=True))
    yield Case(Matmul(m=5, n=8, k=1024, w=w, dtype=dtype, x="outliers"))
    yield Case(Matmul(m=67, n=264, k=768, w=w, dtype=dtype), 0, "full")
    yield Case(Matmul(m=0, n=40, k=256, w=w, dtype=dtype))
    if dtype != "f32":
        yield Case(Matmul(w=w, dtype=dtype, out="f32"))
    if dtype == "f32" or get_format(w).activation != "none":
        yield Case(Matmul(m=2, n=24, k=4096, w=w, dtype=dtype, x="cancel"))
        yield Case(Matmul(m=2, n=24, k=4096, w=w, dtype=dtype, x="extreme"))
    if get_format(w).is_float:
        yield Case(Matmul(m=3, n=37, k=101, w=w, dtype=dtype))
        yield Case(Matmul(m=1, n=1, k=1, w=w, dtype=dtype))


def _activations() -> Iterator[Case]:
    for dtype in DTYPES:
        for x in ("normal", "outliers", "ties"):
            yield Case(QuantizeActivation(dtype=dtype, x=x), 0, "smoke" if x == "normal" else "default")
        yield Case(QuantizeActivation(m=1, k=1, dtype=dtype))
        yield Case(QuantizeActivation(m=0, k=64, dtype=dtype))
