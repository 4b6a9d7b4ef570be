"""The vendor's attention behind checks of our own; see `strict`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch

from opsocket.operators import ContractError
from opsocket_ascend.graph_tasks import Issue, at_once
from opsocket_ascend.torch_npu_provider.checks import HALVES, dense, dtype_of, shape_of, three

NO_MASK, CAUSAL, BAND = 0, 3, 4
"""Values of sparse_mode: none, and those with the compressed mask, bottom-right causal and a band along it."""

PER_TOKEN_HEAD_PAGED: Final = 5
"""Of key_antiquant_mode: a f32 scale for each token and head, in pages [blocks, heads, tokens]."""

MASK_SIDE: Final = 2048
LATENT_DIM, ROPE_DIM, MOST_LATENT_QUERIES = 512, 64, 16
MOST_LATENT_GROUP: Final = 128
LATENT_HEADS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
MOST_SINK_DIM: Final = 128
BLOCK_MULTIPLE, LARGEST_BLOCK = 128, 512
MOST_GROUP, MOST_HEADS, MOST_HEAD_DIM, MOST_ROW = 64, 256, 512, 65535
HEAD_DIM_MULTIPLE: Final = 16
_HIGH_PRECISION: Final = 0
"""Of inner_precise; queries that see no key, which it leaves undefined, are not given."""

_UNLIMITED: Final = 2147483647


def fused_infer_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    q_ends: Sequence[int],
    kv_lens: Sequence[int],
    block_table: torch.Tensor,
    mask: torch.Tensor | None,
    want_lse: bool,
    window: int | None = None,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    q_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    issue: Issue = at_once,
) -> tuple[torch.Tensor, torch.Tensor]:
    """npu_fused_infer_attention_score in layout TND over pages: out [T, Hq, D], and LSE f32[T, Hq, 1] where wanted.

    q [T, Hq, D]. keys, values [blocks, size, Hkv, D] of q's dtype, or i8 with scales f32[blocks, Hkv, size]. q_ends:
    rows up to the end of each sequence; kv_lens: its keys, of which its queries, under a mask, are the last.
    block_table i32[B, W]. mask: the compressed causal one, None where every query sees every key of its sequence.
    window: keys before its own that a query sees. Version 2 of the operator, where there are q_rope [T, Hq, 64] with
    key_rope [blocks, size, 1, 64], over latent keys that are the values, or sinks bf16[Hq].
    """
    is_latent = q_rope is not None or key_rope is not None
    _check_queries(q, num_heads, num_kv_heads, MOST_LATENT_GROUP if is_latent else MOST_GROUP)
    _check_pages(q, keys, values, num_kv_heads)
    size = keys.shape[1]
    shape_of("block_table", block_table, (None, None))
    check_lengths(len(q), q_ends, kv_lens, block_table, size, mask is not None)
    longest = max(stop - start for start, stop in pairwise((0, *q_ends)))
    dtype_of("block_table", block_table, (torch.int32,))
    shape_of("block_table", block_table, (len(kv_lens), None))
    dense("block_table", block_table)
    if mask is not None:
        dtype_of("mask", mask, (torch.int8, torch.uint8, torch.bool))
        shape_of("mask", mask, (MASK_SIDE, MASK_SIDE))
        if longest == 1:
            raise ContractError("mask", "None where every sequence has one query: it would not be looked at", "one")
    if window is not None and window < 0:
        raise ContractError("window", "at least 0", window)
    _check_scales(keys, key_scale, value_scale, num_kv_heads, longest)
    if is_latent:
        _check_latent(q, keys, values, q_rope, key_rope)
        if longest > (1 if mask is None else MOST_LATENT_QUERIES):
            want = f"at most {MOST_LATENT_QUERIES} queries of a sequence, and one without a mask, over latent keys"
            raise ContractError("q_ends", want, longest)
        if window is not None:
            raise ContractError("window", "None over latent keys", window)
    if sinks is not None:
        dtype_of("sinks", sinks, (torch.bfloat16,))
        dtype_of("q", q, (torch.bfloat16,))
        shape_of("sinks", sinks, (num_heads,))
        if q.shape[2] > MOST_SINK_DIM:
            raise ContractError("q", f"heads of at most {MOST_SINK_DIM} with sinks", q.shape[2])
    sparse = NO_MASK if mask is None else CAUSAL if window is None else BAND
    common = {
        "num_key_value_heads": num_kv_heads,
        "input_layout": "TND",
        "block_table": block_table,
        "block_size": size,
        "atten_mask": mask,
        "sparse_mode": sparse,
        "pre_tokens": window if sparse == BAND else _UNLIMITED,
        "next_tokens": 0 if sparse == BAND else _UNLIMITED,
        "inner_precise": _HIGH_PRECISION,
    }
    flat = (q, keys.view(len(keys), size, -1), values.view(len(values), size, -1))
    if is_latent or sinks is not None:
        return issue(
            "npu_fused_infer_attention_score_v2",
            flat,
            {
                "query_rope": q_rope,
                "key_rope": None if key_rope is None else key_rope.view(len(key_rope), size, -1),
                "num_query_heads": num_heads,
                "softmax_scale": scale,
                "actual_seq_qlen": list(q_ends),
                "actual_seq_kvlen": list(kv_lens),
                "learnable_sink": sinks,
                "return_softmax_lse": want_lse,
                **common,
            },
        )
    mode = PER_TOKEN_HEAD_PAGED if keys.dtype == torch.int8 else 0
    return issue(
        "npu_fused_infer_attention_score",
        flat,
        {
            "num_heads": num_heads,
            "scale": scale,
            "actual_seq_lengths": list(q_ends),
            "actual_seq_lengths_kv": list(kv_lens),
            "softmax_lse_flag": want_lse,
            "key_antiquant_scale": key_scale,
            "value_antiquant_scale": value_scale,
            "key_antiquant_mode": mode,
            "value_antiquant_mode": mode,
            **common,
        },
    )


def _check_queries(q: torch.Tensor, num_heads: int, num_kv_heads: int, most_group: int) -> None:
    _, heads, dim = three("q", q)
    dense("q", q)
    dtype_of("q", q, HALVES)
    if heads != num_heads:
        raise ContractError("num_heads", f"q's {heads}", num_heads)
    _check_heads(num_heads, num_kv_heads, dim, most_group)


def _check_pages(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_kv_heads: int) -> None:
    dtype_of("keys", keys, (q.dtype, torch.int8))
    dtype_of("values", values, (keys.dtype,))
    shape_of("keys", keys, (None, None, num_kv_heads, q.shape[2]))
    shape_of("values", values, keys.shape)
    for name, pages in (("keys", keys), ("values", values)):
        dense(name, pages)
    size = keys.shape[1]
    if size % BLOCK_MULTIPLE or size > LARGEST_BLOCK:
        raise ContractError("keys", f"blocks of a multiple of {BLOCK_MULTIPLE} tokens, at most {LARGEST_BLOCK}", size)


def _check_scales(
    keys: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    num_kv_heads: int,
    longest: int,
) -> None:
    quantized = keys.dtype == torch.int8
    for name, scale in (("key_scale", key_scale), ("value_scale", value_scale)):
        if (scale is not None) != quantized:
            raise ContractError(name, "scales for int8 pages" if quantized else "None", scale is not None)
        if scale is not None:
            dtype_of(name, scale, (torch.float32,))
            shape_of(name, scale, (keys.shape[0], num_kv_heads, keys.shape[1]))
    if quantized and longest > 1:
        raise ContractError("q_ends", "one query of each sequence, over int8 pages", longest)


def _check_latent(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    q_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
) -> None:
    if q_rope is None or key_rope is None:
        raise ContractError("q_rope", "given together with key_rope", (q_rope is not None, key_rope is not None))
    if keys is not values or keys.dtype != q.dtype:
        raise ContractError("values", f"the keys, of {q.dtype}, where there are rotary parts", "others")
    tokens, heads, dim = q.shape
    if dim != LATENT_DIM or heads not in LATENT_HEADS:
        raise ContractError("q", f"{list(LATENT_HEADS)} heads of {LATENT_DIM}", f"{heads} of {dim}")
    dtype_of("q_rope", q_rope, (q.dtype,))
    dtype_of("key_rope", key_rope, (q.dtype,))
    shape_of("q_rope", q_rope, (tokens, heads, ROPE_DIM))
    shape_of("key_rope", key_rope, (*keys.shape[:2], 1, ROPE_DIM))
    dense("q_rope", q_rope)
    dense("key_rope", key_rope)


def _check_heads(num_heads: int, num_kv_heads: int, dim: int, most_group: int) -> None:
    if num_kv_heads < 1 or num_heads % num_kv_heads or num_heads // num_kv_heads > most_group:
        raise ContractError("num_kv_heads", f"a divisor of {num_heads}, of at least 1/{most_group}", num_kv_heads)
    if num_heads > MOST_HEADS:
        raise ContractError("num_heads", f"at most {MOST_HEADS}", num_heads)
    if dim % HEAD_DIM_MULTIPLE or dim > MOST_HEAD_DIM:
        raise ContractError("q", f"heads of a multiple of {HEAD_DIM_MULTIPLE}, at most {MOST_HEAD_DIM}", dim)
    if num_kv_heads * dim > MOST_ROW:
        raise ContractError("keys", f"rows of at most {MOST_ROW} elements", num_kv_heads * dim)


def check_lengths(
    tokens: int,
    q_ends: Sequence[int],
    kv_lens: Sequence[int],
    block_table: torch.Tensor,
    size: int,
    is_masked: bool,
) -> None:
    """The host lists of a call of `fused_infer_attention` with so many rows of q, over blocks of that size."""
    if not q_ends or any(stop < start for start, stop in pairwise((0, *q_ends))) or q_ends[-1] != tokens:
        raise ContractError("q_ends", f"ends of sequences, never falling, the last at {tokens}", list(q_ends))
    if len(kv_lens) != len(q_ends) or min(kv_lens) < 1:
        raise ContractError("kv_lens", f"{len(q_ends)} lengths of at least 1", list(kv_lens))
    q_lens = [stop - start for start, stop in pairwise((0, *q_ends))]
    if is_masked and any(keys < queries for keys, queries in zip(kv_lens, q_lens, strict=True)):
        raise ContractError("kv_lens", f"at least the queries under a mask, {q_lens}", list(kv_lens))
    if block_table.shape[1] * size < max(kv_lens):
        raise ContractError("block_table", f"columns for {max(kv_lens)} keys", block_table.shape[1])
