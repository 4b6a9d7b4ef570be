"""FlashInfer's attention over pages in random order, by its own wrappers: bf16 queries, caches in bf16 or f8."""

from __future__ import annotations

from typing import Any

import flashinfer
import torch
from protocol import Prepared, arguments, copies, serve_operators

CACHES = {"bf16": torch.bfloat16, "f8e4m3fn": torch.float8_e4m3fn}
WORKSPACE_BYTES = 384 << 20

args = arguments(__doc__ or "", model=False)
torch.set_default_device(torch.device("cuda", int(args.backend.partition(":")[2] or 0)))
workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8)


def prepare(case: dict[str, Any]) -> Prepared | str:
    if case["op"] != "attention" or case["cache"] not in CACHES:
        return "no such kernel"
    dtype, page = CACHES[case["cache"]], case["page"]
    heads, kv_heads, dim, batch = case["q_heads"], case["kv_heads"], case["head_dim"], case["batch"]
    context, q_len = case["context"], case["q_len"]
    per_request = -(-context // page)
    pages = batch * per_request
    size = pages * page * kv_heads * 2 * dim * dtype.itemsize
    count = copies(size) if q_len == 1 else 2
    caches = [
        tuple(torch.randn(pages, kv_heads, page, dim, dtype=torch.bfloat16).to(dtype) for _ in range(2))
        for _ in range(count)
    ]
    q = torch.randn(batch * q_len, heads, dim, dtype=torch.bfloat16)
    out = torch.empty_like(q)
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cpu") * per_request
    table = torch.randperm(pages, device="cpu").int()
    last = torch.full((batch,), (context - 1) % page + 1, dtype=torch.int32, device="cpu")
    types = {"q_data_type": q.dtype, "kv_data_type": dtype}
    if q_len == 1:
        # With few query heads for each of K, its kernels without matrix units are the faster ones.
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_tensor_cores=heads // kv_heads >= 4
        )
        wrapper.plan(starts, table, last, heads, kv_heads, dim, page, **types)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        rows = torch.arange(batch + 1, dtype=torch.int32, device="cpu") * q_len
        wrapper.plan(rows, starts, table, last, heads, kv_heads, dim, page, causal=True, **types)
    return Prepared(lambda i: wrapper.run(q, caches[i], out=out), count, size)


serve_operators(
    "FlashInfer", [f"flashinfer {flashinfer.__version__}"], torch.inference_mode()(prepare), torch.cuda.synchronize
)
