"""This project, by its plans."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from protocol import GPU_STREAMED_ROWS, STREAMED_ROWS, Prepared, arguments, copies, routes, serve_operators

import opsocket
from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    Bounds,
    CacheSpec,
    CacheWriteSpec,
    GroupedMatmulSpec,
    KVFormat,
    MatmulSpec,
    Numerics,
    Request,
    SlotBatch,
)
from opsocket.quantization import get_format, quantize
from opsocket_engine.options import parse_kv_format

args = arguments(__doc__ or "", model=False, provider={"default": None})
pins = {} if args.provider is None else dict.fromkeys(("matmul", "grouped_matmul", "attention"), args.provider)
session = opsocket.open(args.backend, threads=args.threads, operators=pins)
generator = np.random.default_rng(0)
ON_GPU = session.device.backend != "cpu"


def permitted(dtype: str) -> Numerics:
    """Numbers of 16 bits: what matrix units do."""
    if dtype == "f32":
        return Numerics()
    return Numerics(dtype, "approx", "approx", "f32_truncating", dequantized=dtype)


def prepare(case: dict[str, Any]) -> Prepared | str:
    return {"matmul": matmul, "grouped_matmul": experts, "attention": attention}[case["op"]](case)


def matmul(case: dict[str, Any]) -> Prepared | str:
    m, n, k = case["m"], case["n"], case["k"]
    dtype = case.get("dtype", "f32")
    spec = MatmulSpec(case["format"], n, k, dtype, dtype, numerics=permitted(dtype))
    request = Request(spec, bounds=Bounds(max_tokens=m))
    plan = session.plan(request)
    tensors = quantized(case["format"], n, k)
    first = session.prepare_weight(request, tensors)
    count = copies(first.nbytes) if m <= (GPU_STREAMED_ROWS if ON_GPU else STREAMED_ROWS) else 2
    weights = [first, *(session.prepare_weight(request, tensors) for _ in range(count - 1))]
    x, y = session.upload(generator.standard_normal((m, k), np.float32), dtype), session.empty((m, n), dtype)
    return Prepared(lambda i: plan.run(x, weights[i], out=y), count, first.nbytes)


def experts(case: dict[str, Any]) -> Prepared | str:
    """Rows sorted by expert, as the operator takes them."""
    n, k, of, dtype = case["n"], case["k"], case["experts"], case["dtype"]
    rows = case["m"] * case["top"]
    spec = GroupedMatmulSpec(of, case["format"], n, k, dtype, dtype, numerics=permitted(dtype))
    request = Request(spec, bounds=Bounds(max_tokens=rows))
    plan, tensors = session.plan(request), quantized(case["format"], n, k)
    first = session.prepare_weight(request, tensors)
    turns, count, touched = routes(case, first.nbytes)
    layers = [
        [first if i + e == 0 else session.prepare_weight(request, tensors) for e in range(of)] for i in range(count)
    ]
    offsets = []
    for turn in turns:
        met = np.bincount(np.concatenate(turn), minlength=of)
        offsets.append(session.upload(np.concatenate([[0], np.cumsum(met)]).astype(np.int64)))
    x, y = session.upload(generator.standard_normal((rows, k), np.float32), dtype), session.empty((rows, n), dtype)
    return Prepared(
        lambda i: plan.run(x, layers[i % count], offsets[i], out=y), len(turns), int(touched * first.nbytes)
    )


@lru_cache(1)
def quantized(fmt: str, n: int, k: int) -> Mapping[str, np.ndarray]:
    return quantize(get_format(fmt), generator.standard_normal((n, k), np.float32))


def attention(case: dict[str, Any]) -> Prepared | str:
    heads, kv_heads, dim, batch = case["q_heads"], case["kv_heads"], case["head_dim"], case["batch"]
    context, q_len, page, dtype = case["context"], case["q_len"], case["page"], case["dtype"]
    fmt: KVFormat = parse_kv_format(case["cache"])
    pages = batch * -(-context // page)
    spec = CacheSpec(pages, page, kv_heads, dim, dim, fmt, fmt)
    numerics = permitted(dtype) if ON_GPU else Numerics(probabilities=case["probabilities"])
    request = Request(
        AttentionSpec(heads, kv_heads, dim, dim, dim**-0.5, q_dtype=dtype, out_dtype=dtype, numerics=numerics),
        spec,
        bounds=Bounds(batch * q_len, batch, q_len, context),
    )
    plan = session.plan(request)
    size = session.cache_layouts(spec)[0].bytes_per_block * pages
    count = copies(size) if q_len == 1 else 2
    table = generator.permutation(pages).reshape(batch, -1).astype(np.int32)
    caches = [session.allocate_cache(spec) for _ in range(count)]
    write = session.plan(Request(CacheWriteSpec(), spec))
    values = generator.standard_normal((pages * page, kv_heads, dim), np.float32)
    write.update(SlotBatch(np.arange(pages * page)))
    values = session.upload(values)
    caches = [write.run(cache, values, values) for cache in caches]
    q_indptr = np.arange(batch + 1, dtype=np.int32) * q_len
    plan.update(AttentionBatch(q_indptr, np.full(batch, context, np.int32), table))
    q = session.upload(generator.standard_normal((batch * q_len, heads, dim), np.float32), dtype)
    out = session.empty((batch * q_len, heads, dim), dtype)
    return Prepared(lambda i: plan.run(q, caches[i], out=out), count, size)


serve_operators(
    f"opsocket {session.device.backend}",
    [f"opsocket {opsocket.__version__}"],
    prepare,
    session.synchronize if ON_GPU else None,
)
