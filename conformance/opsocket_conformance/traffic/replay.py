"""How a recorded call of each operator is put again: random numbers, the recorded batch, and that operator's own oracle
and tolerance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    AttentionBatch,
    AttentionSpec,
    BlockPairs,
    CacheSpec,
    EmbeddingSpec,
    MatmulSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SampleBatch,
    SiluMulSpec,
    SlotBatch,
    TakeRowsSpec,
)
from opsocket.quantization import QuantFormat, get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators import argmax, rms_norm, rope, sample, silu_mul
from opsocket_conformance.operators.attention.knobs import Attention, run_and_judge
from opsocket_conformance.operators.attention.scene import Scene
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import Tensors, random_weight
from opsocket_conformance.operators.matmul.weights import Weight, dequantize
from opsocket_conformance.tolerance import Bound, rounded_once
from opsocket_conformance.traffic.recorded import Recorded

Float32 = npt.NDArray[np.float32]
Replay = Callable[[Bench, np.random.Generator, Recorded, Request], None]

Int64 = npt.NDArray[np.int64]

_ATTEMPTS: Final = 50
_DISTINCT_ROWS: Final = 4099


def _attention(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec, cache, batch = request.spec, request.cache, AttentionBatch(**cast(Any, call.arrays))
    assert isinstance(spec, AttentionSpec)
    assert cache is not None
    k, v = (_normal(rng, (cache.num_slots, cache.num_kv_heads, width), spec.q_dtype) for width in _widths(cache))
    slots = [
        _slots(np.asarray(row), int(n), cache) for row, n in zip(call.arrays["block_table"], batch.kv_lens, strict=True)
    ]
    # Twice as peaky as plain random logits: keys matter more or less.
    q = round_to(2 * rng.standard_normal((int(batch.q_indptr[-1]), spec.num_q_heads, spec.head_dim_qk)), spec.q_dtype)
    keys, values = ([part[where] for where in slots] for part in (k, v))
    scene = Scene(request, batch, q, keys, values, slots, None, None, None, 0, latent=False)
    run_and_judge(bench, scene, Attention(q=spec.q_dtype))


def _slots(table: npt.NDArray[np.int64], kv_len: int, cache: CacheSpec) -> npt.NDArray[np.int64]:
    token = np.arange(kv_len)
    return table.astype(np.int64)[token // cache.block_size] * cache.block_size + token % cache.block_size


def _widths(cache: CacheSpec) -> tuple[int, int]:
    return cache.head_dim_k, cache.head_dim_v


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Float32:
    return round_to(rng.standard_normal(shape), dtype)


def _filled(bench: Bench, rng: np.random.Generator, cache: CacheSpec) -> tuple[Any, caches.Pair]:
    dtype = cache.k.code
    pair = caches.tokens(rng, cache, dtype, cache.num_slots)
    made = caches.allocate(bench, cache, dtype, caches.Scales(None, None))
    return caches.write(bench, made, dtype, np.arange(cache.num_slots), pair.k, pair.v), pair


def _cache_write(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec, slots = request.cache, call.arrays["slots"]
    assert spec is not None
    plan = bench.plan(request, SlotBatch(slots))
    cache, pair = _filled(bench, rng, spec)
    fresh = caches.tokens(rng, spec, spec.k.code, len(slots))
    cache = bench.run(plan, cache, *(bench.put(name, x, spec.k.code) for name, x in (("k", fresh.k), ("v", fresh.v))))
    got = caches.read(bench, cache, np.arange(spec.num_slots))
    for name, before, now, read in zip("kv", (pair.k, pair.v), (fresh.k, fresh.v), got, strict=True):
        want = before.copy()
        want[slots] = now
        bench.same(f"{name} by slot", read, want.astype(np.float64))


def _cache_copy_blocks(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec, pairs = request.cache, call.arrays["pairs"]
    assert spec is not None
    plan = bench.plan(request, BlockPairs(pairs))
    cache, pair = _filled(bench, rng, spec)
    copied = bench.run(plan, cache, cache)
    got = caches.read(bench, copied, np.arange(spec.num_slots))
    for name, before, read in zip("kv", (pair.k, pair.v), got, strict=True):
        old = before.reshape(spec.num_blocks, spec.block_size, *before.shape[1:])
        want = old.copy()
        want[pairs[:, 1]] = old[pairs[:, 0]]
        bench.same(f"{name} by slot", read, want.reshape(before.shape).astype(np.float64))


def _weight(rng: np.random.Generator, fmt: QuantFormat, n: int, k: int) -> tuple[Tensors, Weight, Int64]:
    """Tensors of a weight [n, k], what its distinct rows mean, and which of these each row is. Of a vocabulary's many
    rows only the first are drawn, and come again and again."""
    rows = min(n, _DISTINCT_ROWS)
    tensors = random_weight(rng, fmt, rows, k)
    if any(len(tensor) != rows for tensor in tensors.values()):  # not stored row by row
        rows, tensors = n, random_weight(rng, fmt, n, k)
    which = np.arange(n) % rows
    return {name: tensor[which] for name, tensor in tensors.items()}, dequantize(fmt, tensors, rows, k), which


def _matmul(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec = request.spec
    assert isinstance(spec, MatmulSpec)
    fmt, plan = get_format(spec.weight_format), bench.plan(request)
    tensors, weight, which = _weight(rng, fmt, spec.n, spec.k)
    x = activations(rng, "normal", call.rows, spec.k, spec.x_dtype)
    given = bench.out("out", (call.rows, spec.n), spec.out_dtype)
    y = bench.run(plan, bench.put("x", x, spec.x_dtype), bench.prepare(plan, tensors), None, out=given)
    bench.check_padding("out", given, y, call.rows)
    want, bound = expect(fmt, x, weight, None, spec.out_dtype, spec.numerics)
    bound = Bound(bound.rounding[:, which], bound.inner[:, which], bound.slack)
    bench.compare("y", bench.get(y), want[:, which], bound)


def _embedding(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec = request.spec
    assert isinstance(spec, EmbeddingSpec)
    fmt, plan = get_format(spec.weight_format), bench.plan(request)
    tensors, weight, which = _weight(rng, fmt, spec.n, spec.k)
    ids = rng.integers(0, spec.n, call.rows)
    given = bench.out("out", (call.rows, spec.k), spec.out_dtype)
    rows = bench.run(plan, bench.put("ids", ids), bench.prepare(plan, tensors), out=given)
    bench.check_padding("out", given, rows, call.rows)
    want = weight.value[which[ids]]
    bench.compare("rows", bench.get(rows), want, rounded_once(want, spec.out_dtype))


def _rms_norm(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec = request.spec
    assert isinstance(spec, RMSNormSpec)
    plan, shape = bench.plan(request), (call.rows, spec.width)
    x, residual = _normal(rng, shape, spec.dtype), _normal(rng, shape, spec.dtype)
    weight = (1 + 0.3 * rng.standard_normal(spec.width)).astype(np.float32)
    args = [bench.put("x", x, spec.dtype), bench.put("weight", weight)]
    if spec.residual:
        args.append(bench.put("residual", residual, spec.dtype))
    given = bench.out("out", shape, spec.dtype)
    y, exact = bench.run(plan, *args, out=given), x.astype(np.float64)
    if spec.residual:
        y, added = y
        total, exact = exact + residual.astype(np.float64), bench.get(added)
        bench.compare("x + residual", exact, total, rounded_once(total, spec.dtype))
    bench.check_padding("out", given, y, call.rows)
    want = rms_norm.rms_norm(exact, weight.astype(np.float64), spec.eps)
    bench.compare("y", bench.get(y), want, rms_norm.tolerance(want, spec.width, spec.dtype))


def _rope(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec, positions = request.spec, call.arrays["positions"]
    assert isinstance(spec, RopeSpec)
    plan = bench.plan(request)
    x = _normal(rng, (call.rows, spec.num_heads, spec.head_dim), spec.dtype)
    given = bench.out("out", x.shape, spec.dtype)
    y = bench.run(plan, bench.put("x", x, spec.dtype), bench.put("positions", positions), None, out=given)
    bench.check_padding("out", given, y, call.rows)
    want, radius, angle = rope.rope(x.astype(np.float64), positions, spec, None)
    bench.compare("y", bench.get(y), want, rope.tolerance(want, radius, angle, spec.dtype))


def _silu_mul(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec = request.spec
    assert isinstance(spec, SiluMulSpec)
    plan, shape = bench.plan(request), (call.rows, spec.width)
    gate, up = (2 * _normal(rng, shape, spec.dtype) for _ in range(2))
    given = bench.out("out", shape, spec.dtype)
    y = bench.run(plan, bench.put("gate", gate, spec.dtype), bench.put("up", up, spec.dtype), out=given)
    bench.check_padding("out", given, y, call.rows)
    g, u = gate.astype(np.float64), up.astype(np.float64)
    want = silu_mul.silu_mul(g, u)
    bench.compare("y", bench.get(y), want, silu_mul.tolerance(g, u, want, spec.dtype))


def _take_rows(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec, rows = request.spec, call.arrays["rows"]
    assert isinstance(spec, TakeRowsSpec)
    plan = bench.plan(request)
    x = bench.put("x", _normal(rng, (call.rows, spec.width), spec.dtype), spec.dtype)
    given = bench.out("out", (len(rows), spec.width), spec.dtype)
    y = bench.run(plan, x, bench.put("rows", rows), out=given)
    bench.check_padding("out", given, y, len(rows))
    bench.same_bits("y", y, bench.bits(x)[rows])


def _logits(rng: np.random.Generator, rows: int, width: int) -> Float64:
    """As a model's: some fifty tokens stand out, and thousands share next to nothing."""
    logits = -22 + 2 * rng.standard_normal((rows, width))
    for row in logits:
        row[rng.choice(width, 50, replace=False)] = 2.5 * rng.standard_normal(50)
    return round_to(logits, "f32").astype(np.float64)


def _argmax(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    spec: Any = request.spec
    plan, logits = bench.plan(request), _logits(rng, call.rows, spec.width)
    given = bench.out("out", (call.rows,), "i64")
    ids = bench.run(plan, bench.put("logits", logits.astype(np.float32), spec.dtype), out=given)
    bench.check_padding("out", given, ids, call.rows)
    bench.same("ids", bench.get(ids).astype(np.int64), argmax.argmax(logits))


def _sample(bench: Bench, rng: np.random.Generator, call: Recorded, request: Request) -> None:
    """Rows are redrawn until no decision is so near that rounding could make it."""
    spec, batch = request.spec, SampleBatch(**call.arrays)
    plan: Any = bench.plan(request, batch)
    width = spec.width  # type: ignore[attr-defined]
    logits, want = np.empty((call.rows, width)), np.empty(call.rows, np.int64)
    for row in range(call.rows):
        for _ in range(_ATTEMPTS):
            logits[row] = _logits(rng, 1, width)[0]
            choice = sample.sample(logits[row], batch, row)
            if choice.margin > sample.MARGIN:
                break
        else:
            raise AssertionError(f"{_ATTEMPTS} draws of row {row}, and rounding could decide each")
        want[row] = choice.token
    given = bench.out("out", (call.rows,), "i64")
    ids = bench.run(plan, bench.put("logits", logits.astype(np.float32), "f32"), out=given)
    bench.check_padding("out", given, ids, call.rows)
    bench.same("ids", bench.get(ids).astype(np.int64), want)


REPLAYS: Final[Mapping[str, Replay]] = {
    "attention": _attention,
    "cache_write": _cache_write,
    "cache_copy_blocks": _cache_copy_blocks,
    "matmul": _matmul,
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "silu_mul": _silu_mul,
    "take_rows": _take_rows,
    "argmax": _argmax,
    "sample": _sample,
}
"""By operator: those that a decoder's step is made of."""
