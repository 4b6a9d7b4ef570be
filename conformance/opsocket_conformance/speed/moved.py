"""The bytes that a call has to move at the least: each element that its result depends on read once, each output
written once, in the types in which they are stored. Block tables and lengths, which are host data, don't count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Final

import numpy as np

from opsocket.operators import AttentionBatch, AttentionSpec, CacheSpec, PackedWeight, Session
from opsocket.operators.dtypes import dtype_info
from opsocket_conformance.operators.attention.oracle import Problem, visible

_ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "attention": ("q", "kv", "sinks", "alibi", "tree_mask"),
    "cache_write": ("cache", "k", "v"),
    "cache_read": ("cache",),
    "cache_move": ("src", "dst"),
    "cache_copy_blocks": ("src", "dst"),
    "embedding": ("ids", "packed"),
    "grouped_matmul": ("x", "packed", "expert_offsets", "bias"),
    "take_rows": ("x", "rows"),
    "moe_combine": ("x", "slots", "weights"),
}
_OUTPUTS: Final = ("out", "lse_out")


def bytes_moved(session: Session, plan: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Of one run of a plan with the batch that it has."""
    op = plan.request.op
    given = dict(zip(_ARGUMENTS.get(op, map(str, range(len(args)))), args, strict=False))
    given |= {name: value for name, value in kwargs.items() if name not in _OUTPUTS and value is not None}
    if op == "attention":
        return _attention(session, plan, given)
    cache = plan.request.cache
    if op == "cache_write":
        kept = int((np.asarray(plan.batch.slots) >= 0).sum())
        width = token_bytes(cache) + _row_bytes(session, given["k"]) + _row_bytes(session, given["v"])
        return int(kept * width)
    if op == "cache_read":
        held = np.unique(plan.batch.slots).size * token_bytes(cache)
        return int(held) + sum(nbytes(session, part) for part in result)
    if op == "cache_move":
        return int((np.unique(plan.batch.src_slots).size + plan.batch.dst_slots.size) * token_bytes(cache))
    if op == "cache_copy_blocks":
        blocks = np.unique(plan.batch.pairs[:, 0]).size + len(plan.batch.pairs)
        return int(blocks * cache.block_size * token_bytes(cache))
    outputs = sum(nbytes(session, part) for part in _parts(result))
    if op == "embedding":
        rows = np.unique(session.download(given["ids"])).size
        return int(rows * given["packed"].nbytes / given["packed"].n) + nbytes(session, given["ids"]) + outputs
    if op == "take_rows":
        rows = np.unique(session.download(given["rows"])).size
        return rows * _row_bytes(session, given["x"]) + nbytes(session, given["rows"]) + outputs
    if op == "moe_combine":
        rows = np.unique(session.download(given["slots"])).size
        others = nbytes(session, given["slots"]) + nbytes(session, given["weights"])
        return rows * _row_bytes(session, given["x"]) + others + outputs
    if op == "grouped_matmul":
        used = np.diff(session.download(given["expert_offsets"])) > 0
        given["packed"] = [packed for packed, any_row in zip(given["packed"], used, strict=True) if any_row]
    return outputs + sum(nbytes(session, value) for value in given.values())


def nbytes(session: Session, value: Any) -> int:
    """What arrays and weights take on the device, in all."""
    if value is None:
        return 0
    if isinstance(value, PackedWeight):
        return value.nbytes
    if isinstance(value, tuple | list):
        return sum(nbytes(session, part) for part in value)
    info = session.describe(value)
    return prod(info.shape) * dtype_info(info.dtype).itemsize


def token_bytes(cache: CacheSpec) -> float:
    """Of one token in a cache, with the scales that it has of its own."""
    parts = [(cache.head_dim_k, cache.k), *([] if cache.v is None else [(cache.head_dim_v, cache.v)])]
    scales = sum(dtype_info(fmt.scale_dtype).itemsize for _, fmt in parts if fmt.granularity == "token_head")
    return cache.num_kv_heads * (sum(dim * fmt.bits for dim, fmt in parts) / 8 + scales)


def _row_bytes(session: Session, array: Any) -> int:
    if array is None:
        return 0
    info = session.describe(array)
    return prod(info.shape[1:]) * dtype_info(info.dtype).itemsize


def _parts(result: Any) -> Iterable[Any]:
    return result if isinstance(result, tuple) else (result,)


def _attention(session: Session, plan: Any, given: Mapping[str, Any]) -> int:
    spec: AttentionSpec = plan.request.spec
    batch: AttentionBatch = plan.batch
    rows = int(batch.q_indptr[-1]) * spec.num_q_heads
    query, out = (dtype_info(dtype).itemsize for dtype in (spec.q_dtype, spec.out_dtype))
    moved = rows * (spec.head_dim_qk * query + spec.head_dim_vo * out + 4 * spec.want_lse)
    moved += sum(nbytes(session, given[name]) for name in ("sinks", "alibi", "tree_mask") if name in given)
    mask = session.download(given["tree_mask"]) if "tree_mask" in given else None
    problem = Problem(spec, batch, np.empty((0, 0, 0)), [], [], tree_mask=mask)
    seen = [np.flatnonzero(visible(problem, request).any(axis=0)) for request in range(len(batch.kv_lens))]
    cache = plan.request.cache
    if cache is None:
        width = spec.num_kv_heads * (spec.head_dim_qk + spec.head_dim_vo) * dtype_info(spec.kv_dtype).itemsize
        return moved + sum(map(len, seen)) * width
    assert batch.block_table is not None
    size = cache.block_size
    slots = [table[keys // size] * size + keys % size for table, keys in zip(batch.block_table, seen, strict=True)]
    held = np.unique(np.concatenate([*slots, np.empty(0, np.int64)])).size
    return moved + int(held * token_bytes(cache))
