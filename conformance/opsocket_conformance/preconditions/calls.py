"""One small valid call of every operator: what the negative tests break, one precondition at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from opsocket.operators import (
    AddSpec,
    ArgmaxSpec,
    BlockPairs,
    Bounds,
    Cache,
    CacheCopyBlocksSpec,
    CacheMoveSpec,
    CacheReadSpec,
    CacheSpec,
    CacheWriteSpec,
    EmbeddingSpec,
    GroupedMatmulSpec,
    KVFormat,
    MatmulSpec,
    MergeStatesSpec,
    MoECombineSpec,
    MoERouteSpec,
    MoESortSpec,
    MoveBatch,
    QuantizeActivationSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleBatch,
    SampleSpec,
    SiluMulSpec,
    SlotBatch,
    TakeRowsSpec,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.scene import build, fill
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.matmul.random_weights import Tensors, random_weight


@dataclass(eq=False)
class Call:
    """request and batch of a plan, and the arguments of its `run` by name. caches: those that it may write to. tensors:
    of the weight that it takes, where it takes one."""

    request: Request
    batch: Any
    args: dict[str, Any]
    caches: tuple[Cache, ...] = ()
    tensors: Tensors | None = None


Make = Callable[[Bench, np.random.Generator, str], Call]
"""Makes a valid call, its activations of the type named."""


def _array(bench: Bench, rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    return bench.session.upload(round_to(rng.standard_normal(shape), dtype), dtype)


def _asked(bench: Bench, request: Request) -> Request:
    """The request, after asking whether it is served: arrays of a type that a backend lacks can't be made."""
    bench.plan(request)
    return request


def _attention(**fields: Any) -> Make:
    def make(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
        scene = build(Attention(q=dtype, **fields), rng)
        bench.plan(scene.request, scene.batch)
        kv, _, _ = fill(bench, scene)
        rows = int(scene.batch.q_indptr[-1])
        bounds = Bounds(rows, len(scene.batch.kv_lens), int(np.diff(scene.batch.q_indptr).max()), 140)
        request = Request(scene.spec, scene.request.cache, bounds=bounds)
        q = bench.session.upload(scene.q, dtype)
        args = {"q": q, "kv": kv, "sinks": None, "alibi": None, "tree_mask": None, **scene.operands(bench)}
        args["out"] = bench.out("out", (rows, scene.spec.num_q_heads, scene.spec.head_dim_vo), dtype)
        return Call(request, scene.batch, args, (kv,) if isinstance(kv, Cache) else ())

    return make


def _merge(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(MergeStatesSpec(3, 64, dtype, dtype)))
    args = {"outs": _array(bench, rng, (2, 5, 3, 64), dtype), "lses": _array(bench, rng, (2, 5, 3), "f32")}
    return Call(request, None, args | {"out": bench.out("out", (5, 3, 64), dtype)})


def _cache(bench: Bench, rng: np.random.Generator, dtype: str, blocks: int = 5) -> Cache:
    spec = CacheSpec(blocks, 16, 3, 64, 64, KVFormat(dtype), KVFormat(dtype))  # type: ignore[arg-type]
    pair = caches.tokens(rng, spec, dtype, spec.num_slots)
    cache = caches.allocate(bench, spec, dtype, caches.Scales(None, None))
    return caches.write(bench, cache, dtype, np.arange(spec.num_slots), pair.k, pair.v)


def _cache_write(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    cache = _cache(bench, rng, dtype)
    batch = SlotBatch(np.array([3, -1, 70, 12]))
    args = {"cache": cache, "k": _array(bench, rng, (4, 3, 64), dtype), "v": _array(bench, rng, (4, 3, 64), dtype)}
    return Call(Request(CacheWriteSpec(dtype), cache.spec, bounds=Bounds(max_tokens=6)), batch, args, (cache,))


def _cache_read(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    cache = _cache(bench, rng, dtype)
    request = Request(CacheReadSpec(dtype), cache.spec, bounds=Bounds(max_tokens=6))
    return Call(request, SlotBatch(np.array([3, 70, 3])), {"cache": cache}, (cache,))


def _cache_move(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    src, dst = _cache(bench, rng, dtype), _cache(bench, rng, dtype)
    batch = MoveBatch(np.array([1, 2, 40]), np.array([2, 3, 79]))
    request = Request(CacheMoveSpec(), src.spec, bounds=Bounds(max_tokens=6))
    return Call(request, batch, {"src": src, "dst": dst}, (src, dst))


def _cache_copy_blocks(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    src, dst = _cache(bench, rng, dtype, 7), _cache(bench, rng, dtype)
    batch = BlockPairs(np.array([[6, 0], [1, 4]]))
    return Call(Request(CacheCopyBlocksSpec(), dst.spec), batch, {"src": src, "dst": dst}, (src, dst))


def _matmul(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    spec = MatmulSpec(dtype, 24, 64, dtype, dtype, bias=True)
    request = _asked(bench, Request(spec, bounds=Bounds(max_tokens=5)))
    tensors = random_weight(rng, get_format(dtype), 24, 64)
    args = {"x": _array(bench, rng, (5, 64), dtype), "packed": bench.prepare(bench.plan(request), tensors)}
    args |= {"bias": _array(bench, rng, (24,), "f32"), "out": bench.out("out", (5, 24), dtype)}
    return Call(request, None, args, tensors=tensors)


def _grouped_matmul(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = Request(GroupedMatmulSpec(3, dtype, 24, 64, dtype, dtype), bounds=Bounds(max_tokens=5))
    plan = bench.plan(request)
    tensors = [random_weight(rng, get_format(dtype), 24, 64) for _ in range(3)]
    args = {"x": _array(bench, rng, (5, 64), dtype), "packed": [bench.prepare(plan, t) for t in tensors]}
    args |= {"expert_offsets": bench.session.upload(np.array([0, 2, 2, 5])), "bias": None}
    return Call(request, None, args | {"out": bench.out("out", (5, 24), dtype)}, tensors=tensors[0])


def _embedding(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = Request(EmbeddingSpec(dtype, 24, 64, dtype), bounds=Bounds(max_tokens=5))
    tensors = random_weight(rng, get_format(dtype), 24, 64)
    args = {"ids": bench.session.upload(np.array([3, 23, 0])), "packed": bench.prepare(bench.plan(request), tensors)}
    return Call(request, None, args | {"out": bench.out("out", (3, 64), dtype)}, tensors=tensors)


def _quantize_activation(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(QuantizeActivationSpec(64, "i8_token", dtype)))
    return Call(request, None, {"x": _array(bench, rng, (5, 64), dtype)})


def _rms_norm(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(RMSNormSpec(64, 1e-5, dtype, residual=True)))
    args = {"x": _array(bench, rng, (5, 64), dtype), "weight": _array(bench, rng, (64,), "f32")}
    args |= {"residual": _array(bench, rng, (5, 64), dtype), "out": bench.out("out", (5, 64), dtype)}
    return Call(request, None, args)


def _rope(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(RopeSpec(3, 64, 64, 1e4, dtype=dtype)))
    args = {"x": _array(bench, rng, (5, 3, 64), dtype), "positions": bench.session.upload(np.arange(5))}
    return Call(request, None, args | {"factors": None, "out": bench.out("out", (5, 3, 64), dtype)})


def _silu_mul(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(SiluMulSpec(64, dtype)))
    args = {name: _array(bench, rng, (5, 64), dtype) for name in ("gate", "up")}
    return Call(request, None, args | {"out": bench.out("out", (5, 64), dtype)})


def _add(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(AddSpec(64, dtype)))
    args = {name: _array(bench, rng, (5, 64), dtype) for name in ("a", "b")}
    return Call(request, None, args | {"out": bench.out("out", (5, 64), dtype)})


def _take_rows(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(TakeRowsSpec(64, dtype)))
    args = {"x": _array(bench, rng, (5, 64), dtype), "rows": bench.session.upload(np.array([4, 0, 4]))}
    return Call(request, None, args | {"out": bench.out("out", (3, 64), dtype)})


def _moe_route(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(MoERouteSpec(8, 2, True, dtype)))
    return Call(request, None, {"logits": _array(bench, rng, (5, 8), dtype)})


def _moe_sort(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(MoESortSpec(8, 2)))
    experts = np.stack([rng.permutation(8)[:2] for _ in range(5)])
    return Call(request, None, {"experts": bench.session.upload(experts)})


def _moe_combine(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(MoECombineSpec(64, 2, dtype)))
    args = {"x": _array(bench, rng, (12, 64), dtype)}
    args |= {"slots": bench.session.upload(rng.permutation(12)[:10].reshape(5, 2))}
    args |= {"weights": _array(bench, rng, (5, 2), "f32"), "out": bench.out("out", (5, 64), dtype)}
    return Call(request, None, args)


def _argmax(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(ArgmaxSpec(64, dtype)))
    args = {"logits": _array(bench, rng, (5, 64), dtype), "out": bench.out("out", (5,), "i64")}
    return Call(request, None, args)


def _sample(bench: Bench, rng: np.random.Generator, dtype: str) -> Call:
    request = _asked(bench, Request(SampleSpec(64, dtype), bounds=Bounds(max_batch=2)))
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    indptr, ids, counts = np.array([0, 1, 3]), np.array([5, 0, 63]), np.array([1, 2, 1])
    batch = SampleBatch(ones, np.zeros(2, np.int32), ones, zeros, zeros, ones, zeros, zeros, indptr, ids, counts)
    args = {"logits": _array(bench, rng, (2, 64), dtype), "out": bench.out("out", (2,), "i64")}
    return Call(request, batch, args)


CALLS: Final[Mapping[str, Make]] = {
    "attention": _attention(batch="chunk"),
    "attention_contiguous": _attention(batch="chunk", bs=0),
    "attention_tree": _attention(batch="verify", mask="tree", left=9, sinks=True, alibi=True, lse=True),
    "merge_states": _merge,
    "cache_write": _cache_write,
    "cache_read": _cache_read,
    "cache_move": _cache_move,
    "cache_copy_blocks": _cache_copy_blocks,
    "matmul": _matmul,
    "grouped_matmul": _grouped_matmul,
    "embedding": _embedding,
    "quantize_activation": _quantize_activation,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "silu_mul": _silu_mul,
    "add": _add,
    "take_rows": _take_rows,
    "moe_route": _moe_route,
    "moe_sort": _moe_sort,
    "moe_combine": _moe_combine,
    "argmax": _argmax,
    "sample": _sample,
}
"""By the operator's name, with variants of attention."""
