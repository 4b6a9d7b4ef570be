"""torch: int8 matmul without groups, 4-bit weights with bf16 activations, attention over contiguous keys."""

from __future__ import annotations

from typing import Any

import torch
from protocol import Prepared, arguments, copies, serve_operators


def prepare(case: dict[str, Any]) -> Prepared | str:
    torch.manual_seed(0)
    if case["op"] == "matmul":
        return matmul(case)
    return attention(case)


def matmul(case: dict[str, Any]) -> Prepared | str:
    m, n, k = case["m"], case["n"], case["k"]
    if case["bits"] == 8:
        weights = [torch.randint(-127, 128, (n, k), dtype=torch.int8).t() for _ in range(copies(n * k))]
        x = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        return Prepared(lambda i: torch._int_mm(x, weights[i]), len(weights), n * k)
    if case["bits"] != 4 or n % 64:
        return "no such kernel"
    count = copies(n * k // 2)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k), dtype=torch.int32), 2)
    weights = [packed.clone() for _ in range(count)]
    group = case["group"]
    scales = torch.rand(k // group, n, 2, dtype=torch.bfloat16)
    x = torch.randn(m, k, dtype=torch.bfloat16)
    call = torch.ops.aten._weight_int4pack_mm_for_cpu
    return Prepared(lambda i: call(x, weights[i], group, scales), count, n * k // 2 + scales.numel() * 2)


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


args = arguments(__doc__ or "", model=False)
torch.set_num_threads(args.threads)
serve_operators("torch", [f"torch {torch.__version__}"], torch.inference_mode()(prepare))
