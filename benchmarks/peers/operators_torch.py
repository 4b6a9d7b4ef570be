"""torch: dense and int8 matmul, bf16 matmul of experts, 4-bit weights with bf16 activations, attention over contiguous
keys."""

from __future__ import annotations

from typing import Any

import torch
from protocol import GPU_STREAMED_ROWS, Prepared, arguments, copies, routes, serve_operators


def prepare(case: dict[str, Any]) -> Prepared | str:
    torch.manual_seed(0)
    if case["op"] == "matmul":
        return matmul(case)
    if case["op"] == "grouped_matmul":
        return experts(case)
    return attention(case) if DEVICE.type == "cpu" else gpu_attention(case)


def matmul(case: dict[str, Any]) -> Prepared | str:
    m, n, k = case["m"], case["n"], case["k"]
    streamed = DEVICE.type == "cpu" or m <= GPU_STREAMED_ROWS
    if case["bits"] == 16:
        count = copies(2 * n * k) if streamed else 2
        dense = [torch.randn(n, k, dtype=torch.bfloat16).t() for _ in range(count)]
        rows, out = torch.randn(m, k, dtype=torch.bfloat16), torch.empty(m, n, dtype=torch.bfloat16)
        return Prepared(lambda i: torch.mm(rows, dense[i], out=out), count, 2 * n * k)
    if case["bits"] == 8:
        if DEVICE.type != "cpu" and m <= 16:
            return "no such kernel: _int_mm takes more than 16 rows on a GPU"
        weights = [
            torch.randint(-127, 128, (n, k), dtype=torch.int8).t() for _ in range(copies(n * k) if streamed else 2)
        ]
        x = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        return Prepared(lambda i: torch._int_mm(x, weights[i]), len(weights), n * k)
    if case["bits"] != 4 or n % 64:
        return "no such kernel"
    if DEVICE.type != "cpu":
        return gpu_int4(case)
    count = copies(n * k // 2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k), dtype=torch.int32), 2)
    weights = [packed.clone() for _ in range(count)]
    group = case["group"]
    scales = torch.rand(k // group, n, 2, dtype=torch.bfloat16)
    x = torch.randn(m, k, dtype=torch.bfloat16)
    call = torch.ops.aten._weight_int4pack_mm_for_cpu
    return Prepared(lambda i: call(x, weights[i], group, scales), count, n * k // 2 + scales.numel() * 2)


def experts(case: dict[str, Any]) -> Prepared | str:
    """bf16 weights and rows sorted by expert."""
    if case["bits"] != 16:
        return "no such kernel"
    m, n, k, of, top = case["m"], case["n"], case["k"], case["experts"], case["top"]
    turns, count, touched = routes(case, 2 * n * k)
    layers = [torch.randn(of, n, k, dtype=torch.bfloat16).transpose(1, 2) for _ in range(count)]
    met = [torch.bincount(torch.tensor(turn).flatten(), minlength=of) for turn in turns]
    offsets = [counts.cumsum(0).to(torch.int32) for counts in met]
    x = torch.randn(m * top, k, dtype=torch.bfloat16)
    call = torch.nn.functional.grouped_mm
    return Prepared(lambda i: call(x, layers[i % count], offs=offsets[i]), len(turns), int(touched * 2 * n * k))


def attention(case: dict[str, Any]) -> Prepared | str:
    if case["cache"] != "bf16":
        return "no such kernel"
    heads, kv_heads, dim, batch = case["q_heads"], case["kv_heads"], case["head_dim"], case["batch"]
    context, q_len, group = case["context"], case["q_len"], case["q_heads"] // case["kv_heads"]
    size = 2 * batch * kv_heads * context * dim * 2
    count = copies(size) if q_len == 1 else 2
    keys = [torch.randn(batch, kv_heads, context, dim, dtype=torch.bfloat16) for _ in range(count)]
    values = [torch.randn_like(k) for k in keys]
    attend = torch.nn.functional.scaled_dot_product_attention
    if q_len == 1:
        # The query heads of a group as rows of one head: nine times faster than enable_gqa.
        q = torch.randn(batch, kv_heads, group, dim, dtype=torch.bfloat16)
        return Prepared(lambda i: attend(q, keys[i], values[i]), count, size)
    q = torch.randn(batch, heads, q_len, dim, dtype=torch.bfloat16)
    wide = [(k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)) for k, v in zip(keys, values, strict=True)]
    return Prepared(lambda i: attend(q, *wide[i], is_causal=True), count, size)


def gpu_int4(case: dict[str, Any]) -> Prepared | str:
    """The weights' minimum is in every group, whatever the format."""
    m, n, k, group = case["m"], case["n"], case["k"], case["group"]
    if case["format"].endswith("_a8"):
        return "no such kernel"
    count = copies(n * k // 2) if m <= GPU_STREAMED_ROWS else 2
    packed = torch._convert_weight_to_int4pack(torch.randint(0, 256, (n, k // 2), dtype=torch.uint8), 8)
    weights = [packed.clone() for _ in range(count)]
    scales = torch.rand(k // group, n, 2, dtype=torch.bfloat16)
    x = torch.randn(m, k, dtype=torch.bfloat16)
    call = torch._weight_int4pack_mm
    return Prepared(lambda i: call(x, weights[i], group, scales), count, n * k // 2 + scales.numel() * 2)


def gpu_attention(case: dict[str, Any]) -> Prepared | str:
    if case["cache"] != "bf16":
        return "no such kernel"
    heads, kv_heads, dim, batch = case["q_heads"], case["kv_heads"], case["head_dim"], case["batch"]
    context, q_len = case["context"], case["q_len"]
    size = 2 * batch * kv_heads * context * dim * 2
    count = copies(size) if q_len == 1 else 2
    keys = [torch.randn(batch, kv_heads, context, dim, dtype=torch.bfloat16) for _ in range(count)]
    values = [torch.randn_like(k) for k in keys]
    q = torch.randn(batch, heads, q_len, dim, dtype=torch.bfloat16)
    attend = torch.nn.functional.scaled_dot_product_attention
    return Prepared(lambda i: attend(q, keys[i], values[i], is_causal=q_len > 1, enable_gqa=True), count, size)


args = arguments(__doc__ or "", model=False)
DEVICE = (
    torch.device("cpu") if args.backend == "cpu" else torch.device("cuda", int(args.backend.partition(":")[2] or 0))
)
torch.set_default_device(DEVICE)  # AMD's GPUs too are torch's "cuda"
torch.set_num_threads(args.threads)
torch.set_grad_enabled(False)
serve_operators(
    "torch",
    [f"torch {torch.__version__}"],
    prepare,
    None if DEVICE.type == "cpu" else torch.cuda.synchronize,
)
