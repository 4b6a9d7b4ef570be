"""The work that operators.py measures: single operators, on a CPU and on a GPU, by shape and format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One operator's work. limit: "read" where memory decides, else the kind of number that is computed with.
    operations: of one call, a product and its sum being two."""

    kind: str
    label: str
    limit: str
    operations: float
    facts: dict[str, Any]


def matmul(
    fmt: str, bits: int, group: int, minimums: bool, n: int, k: int, m: int, *, dtype: str = "f32", limit: str = "int8"
) -> Case:
    """limit: of many rows. dtype: of x and of the result; one of 16 bits permits what matrix units do."""
    facts = {"op": "matmul", "format": fmt, "bits": bits, "group": group, "minimums": minimums, "n": n, "k": k, "m": m}
    label = f"{fmt} {n}x{k} M={m}"
    if dtype != "f32":
        facts["dtype"] = dtype
        label += f" {dtype}"
    return Case("matmul", label, "read" if m <= FEW_ROWS.get(dtype, 1) else limit, 2.0 * m * n * k, facts)


def experts(fmt: str, bits: int, group: int, minimums: bool, m: int, *, dtype: str = "f32", limit: str = "f32") -> Case:
    """Products of m tokens with a few of many weights each: gate or up of a layer of Qwen3-30B-A3B."""
    n, k, of, top = 768, 2048, 128, 8
    facts = {"op": "grouped_matmul", "format": fmt, "bits": bits, "group": group, "minimums": minimums, "n": n, "k": k,
             "m": m, "experts": of, "top": top, "dtype": dtype}  # fmt: skip
    label = f"{fmt} {n}x{k}, {top} of {of} experts, M={m}"
    return Case("experts", label, "read" if m * top <= of else limit, 2.0 * m * top * n * k, facts)


def attention(
    cache: str,
    context: int,
    batch: int,
    *,
    q_len: int = 1,
    heads: tuple[int, int, int] = (32, 8, 128),
    fast: bool = False,
) -> Case:
    q_heads, kv_heads, dim = heads
    facts = {
        "op": "attention", "cache": cache, "context": context, "batch": batch, "q_len": q_len, "page": 16,
        "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": dim,
        "dtype": "bf16" if fast else "f32", "probabilities": "bf16" if fast else "f32",
    }  # fmt: skip
    kind = "decode" if q_len == 1 else "prefill"
    seen = context if q_len == 1 else q_len * (q_len + 1) / 2
    label = f"{cache} cache, {q_heads}/{kv_heads} heads of {dim}, {batch} x {context}{', all bf16' if fast else ''}"
    return Case(
        kind, label, "read" if q_len == 1 else "bf16" if fast else "f32", 4.0 * batch * q_heads * dim * seen, facts
    )


FEW_ROWS = {"bf16": 64}
"""Rows of a product up to which memory decides, by the type of x: a GPU does hundreds of operations for each byte."""
SHAPES = ((3584, 3584), (576, 576), (1536, 576), (576, 1536))
A8 = (
    ("q4_0_a8", 4, 32, False),
    ("q4_1_a8", 4, 32, True),
    ("i4_g128_a8", 4, 128, False),
    ("i8_channel_a8", 8, 0, False),
)
K_QUANTS = (
    ("q2_K_a8", 2, 16, True),
    ("q3_K_a8", 3, 16, False),
    ("q4_K_a8", 4, 32, True),
    ("q5_K_a8", 5, 32, True),
    ("q6_K_a8", 6, 16, False),
)
"""What most files hold."""
OTHERS = (("q4_0", 4, 32, False), ("q4_1", 4, 32, True), ("i2_g64_a8", 2, 64, False))
EXPERTS = (
    (("q4_0", 4, 32, False), "f32"),
    (("q4_0_a8", 4, 32, False), "int8"),
    (("q4_K", 4, 32, True), "f32"),
    (("q4_K_a8", 4, 32, True), "int8"),
)
CONTEXTS = ((1024, 1), (4096, 1), (16384, 1), (1024, 8), (4096, 8))
CURVES = {
    "contexts": [
        attention(cache, context, 1, fast=fast)
        for fast in (True, False)
        for cache in ("bf16", "f8e4m3fn", "i8", "i4")
        for context in (256, 1024, 4096, 16384)
    ],
    "batches": [matmul("q4_0_a8", 4, 32, False, 3584, 3584, m) for m in (1, 2, 4, 8, 16)]
    + [attention("bf16", 1024, batch, fast=True) for batch in (1, 2, 4, 8, 16)],
}
"""Cost against the length of a context, and against how many sequences there are."""
SMOLLM2 = (9, 3, 64)


def divides(group: int, k: int) -> bool:
    return not group or k % group == 0


MEASURED = [
    *(matmul(*fmt, *shape, m) for shape in SHAPES for fmt in A8 if divides(fmt[2], shape[1]) for m in (1, 8, 128, 512)),
    *(matmul(*fmt, 3584, 3584, m) for fmt in OTHERS for m in (1, 128)),
    *(matmul(*fmt, 3584, 3584, m) for fmt in K_QUANTS for m in (1, 8, 128)),
    *(matmul("bf16", 16, 0, False, 3584, 3584, m, dtype="bf16", limit="f32") for m in (1, 8, 128)),
    *(experts(*fmt, m, limit=limit) for fmt, limit in EXPERTS for m in (1, 8, 512)),
    *(experts("bf16", 16, 0, False, m, dtype="bf16") for m in (1, 8, 512)),
    *(attention(cache, *context) for cache in ("bf16", "f8e4m3fn", "i8", "i4") for context in CONTEXTS),
    *(attention(cache, *context, fast=True) for cache in ("bf16", "f8e4m3fn", "i8", "i4") for context in CONTEXTS),
    *(attention("bf16", 1024, batch, heads=SMOLLM2) for batch in (1, 8)),
    *(attention("bf16", n, 1, q_len=n, fast=fast) for n in (512, 2048) for fast in (True, False)),
    *(attention("bf16", n, 1, q_len=n, heads=SMOLLM2, fast=fast) for n in (512, 2048) for fast in (True, False)),
]  # fmt: skip
CPU = MEASURED + [case for curve in CURVES.values() for case in curve if case not in MEASURED]

GPU_SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))
"""Of a model with 8 billion weights: an output of attention, gate and up, down."""
GPU_FORMATS = (
    ("bf16", 16, 0, False, "bf16"),
    ("i4_g128", 4, 128, False, "bf16"),
    ("q4_1", 4, 32, True, "bf16"),
    ("i8_channel_a8", 8, 0, False, "int8"),
    ("i4_g128_a8", 4, 128, False, "int8"),
)
GPU = [
    *(
        matmul(*fmt[:4], *shape, m, dtype="bf16", limit=fmt[4])
        for shape in GPU_SHAPES
        for fmt in GPU_FORMATS
        for m in (1, 8, 64, 512, 4096)
    ),
    *(
        attention(cache, context, batch, fast=True)
        for cache in ("bf16", "f8e4m3fn", "i8", "i4")
        for context, batch in ((1024, 1), (16384, 1), (1024, 64), (4096, 64), (131072, 1))
    ),
    *(attention("bf16", n, 1, q_len=n, fast=True) for n in (512, 2048, 8192)),
]
"""What a GPU is asked."""


def chosen(cases: Sequence[Case], wanted: Sequence[str]) -> list[Case]:
    """The cases of these kinds or curves, or with these texts in their labels, or with all that a + joins; all cases
    where nothing is wanted."""

    def fits(case: Case, text: str) -> bool:
        return case in CURVES[text] if text in CURVES else text == case.kind or text in case.label

    return [
        case
        for case in cases
        if not wanted or any(all(fits(case, part) for part in text.split("+")) for text in wanted)
    ]
