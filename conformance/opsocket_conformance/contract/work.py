"""Calls that can be repeated: inputs on the device, one request, and the oracle's word on what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opsocket.operators import (
    AttentionBatch,
    Cache,
    CacheSpec,
    CacheWriteSpec,
    KVFormat,
    MatmulSpec,
    Ragged,
    Request,
    RMSNormSpec,
    SlotBatch,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.findings import Float64, Host
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators import rms_norm
from opsocket_conformance.operators.attention.knobs import Attention, judge
from opsocket_conformance.operators.attention.scene import Scene, build, fill
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize


@dataclass(eq=False)
class Work:
    """name: in findings. enqueue: runs a plan of `request`, waits for nothing, and returns how to fetch what came out,
    f64. judge: holds that against the oracle. same_bits: whether two runs must agree bit for bit."""

    name: str
    request: Request
    batch: Any
    enqueue: Callable[[Bench, Any], Callable[[], Float64]]
    judge: Callable[[Bench, Float64], None]
    same_bits: bool

    def plan(self, bench: Bench) -> Any:
        """A plan of its own, with its batch."""
        return bench.plan(self.request, self.batch)

    def run(self, bench: Bench, plan: Any) -> Float64:
        """What a plan that holds this batch gives."""
        return self.enqueue(bench, plan)()

    def alone(self, bench: Bench) -> Float64:
        """What a plan of its own gives, judged: what all else is compared with."""
        got = self.run(bench, self.plan(bench))
        self.judge(bench, got)
        return got

    def check(self, bench: Bench, when: str, got: Float64, alone: Float64) -> None:
        """The same bits as alone where the request promises that, and right in any case."""
        if self.same_bits:
            bench.same(f"{self.name} {when}, bit by bit", bits(got), bits(alone))
        else:
            self.judge(bench, got)


def bits(values: Float64) -> Host:
    """Values that compare equal only where every bit does."""
    return np.ascontiguousarray(values).view(np.uint64)


def attention_scene(bench: Bench, rng: np.random.Generator, dtype: str, **fields: Any) -> tuple[Scene, bool]:
    """A scene of `Attention`'s fields, `deterministic` where the session serves that; and whether it does."""
    scene = build(Attention(q=dtype, **fields), rng)
    asked = replace(scene.request, spec=replace(scene.spec, deterministic=True))
    if bench.session.supports(asked):
        scene.request = asked
        return scene, True
    bench.plan(scene.request)
    bench.note("attention: no deterministic request is served, so that no bits are compared")
    return scene, False


def attention(
    bench: Bench,
    name: str,
    scene: Scene,
    same_bits: bool,
    kv: Cache | Ragged,
    keys: list[Float64],
    values: list[Float64],
) -> Work:
    """One attention call over keys and values that `fill` put on the device."""
    q, operands = bench.put("q", scene.q, scene.spec.q_dtype), scene.operands(bench)
    problem = scene.problem(keys, values)

    def enqueue(bench: Bench, plan: Any) -> Callable[[], Float64]:
        out, _ = bench.run(plan, q, kv, **operands)
        return lambda: bench.get(out)

    def judged(bench: Bench, got: Float64) -> None:
        judge(bench, problem, got, None)

    return Work(name, scene.request, scene.batch, enqueue, judged, same_bits)


def shortened(
    scene: Scene, keys: Sequence[Float64], values: Sequence[Float64]
) -> tuple[Scene, list[Float64], list[Float64]]:
    """The same request over the first half of every sequence's keys."""
    kv_lens = np.asarray(scene.batch.kv_lens) // 2
    batch: AttentionBatch = replace(scene.batch, kv_lens=kv_lens.astype(np.int32), q_start=None)
    half = [[part[:n] for part, n in zip(parts, kv_lens, strict=True)] for parts in (keys, values)]
    return replace(scene, batch=batch), half[0], half[1]


def matmul(bench: Bench, rng: np.random.Generator, dtype: str, m: int, n: int, k: int) -> Work:
    """A product with a weight of the activations' own type."""
    fmt, spec = get_format(dtype), MatmulSpec(dtype, n, k, dtype, dtype)
    plan = bench.plan(Request(spec))
    tensors = random_weight(rng, fmt, n, k)
    packed = bench.prepare(plan, tensors)
    x = activations(rng, "normal", m, k, dtype)
    given = bench.put("x", x, dtype)
    want, bound = expect(fmt, x, dequantize(fmt, tensors, n, k), None, dtype, spec.numerics)

    def enqueue(bench: Bench, plan: Any) -> Callable[[], Float64]:
        y = bench.run(plan, given, packed)
        return lambda: bench.get(y)

    name = f"matmul {m}x{k} by {n}"
    return Work(name, Request(spec), None, enqueue, lambda bench, got: bench.compare(name, got, want, bound), False)


def norm(bench: Bench, rng: np.random.Generator, dtype: str, rows: int, width: int) -> Work:
    """A root-mean-square norm."""
    spec = RMSNormSpec(width, 1e-5, dtype)
    bench.plan(Request(spec))
    x = round_to(rng.standard_normal((rows, width)), dtype)
    weight = (1 + 0.3 * rng.standard_normal(width)).astype(np.float32)
    args = bench.put("x", x, dtype), bench.put("weight", weight)
    want = rms_norm.rms_norm(x.astype(np.float64), weight.astype(np.float64), spec.eps)
    bound = rms_norm.tolerance(want, width, dtype)

    def enqueue(bench: Bench, plan: Any) -> Callable[[], Float64]:
        y = bench.run(plan, *args)
        return lambda: bench.get(y)

    name = f"rms_norm {rows}x{width}"
    return Work(name, Request(spec), None, enqueue, lambda bench, got: bench.compare(name, got, want, bound), False)


def cache_write(bench: Bench, rng: np.random.Generator, dtype: str, tokens: int) -> Work:
    """Tokens written at scattered slots; what comes out is K as it is read back there."""
    fmt = KVFormat(dtype)  # type: ignore[arg-type]
    spec = CacheSpec(7, 16, 3, 64, 64, fmt, fmt)
    pair = caches.tokens(rng, spec, dtype, tokens)
    cache = caches.allocate(bench, spec, dtype, caches.Scales(None, None))
    slots = rng.permutation(spec.num_slots)[:tokens]
    k, v = bench.put("k", pair.k, dtype), bench.put("v", pair.v, dtype)

    def enqueue(bench: Bench, plan: Any) -> Callable[[], Float64]:
        written = bench.run(plan, cache, k, v)
        return lambda: caches.read(bench, written, slots)[0]

    def judged(bench: Bench, got: Float64) -> None:
        bench.same("cache_write, read back", got, pair.k.astype(np.float64))

    return Work(
        "cache_write", Request(CacheWriteSpec(dtype), spec, cache.layout), SlotBatch(slots), enqueue, judged, True
    )


def assorted(bench: Bench, rng: np.random.Generator, dtype: str) -> Iterator[Work]:
    """Different requests of different operators, and one request with two batches."""
    for fields in ({"batch": "decode"}, {"hq": 9, "hkv": 3, "batch": "chunk"}, {"d": 128, "batch": "mixed"}):
        scene, same_bits = attention_scene(bench, rng, dtype, **fields)
        kv, keys, values = fill(bench, scene)
        yield attention(bench, f"attention of {fields['batch']}", scene, same_bits, kv, keys, values)
        if fields["batch"] == "decode":
            scene, keys, values = shortened(scene, keys, values)
            yield attention(bench, "attention of shorter sequences", scene, same_bits, kv, keys, values)
    yield matmul(bench, rng, dtype, 3, 136, 256)
    yield matmul(bench, rng, dtype, 17, 72, 512)
    yield norm(bench, rng, dtype, 7, 576)
    yield norm(bench, rng, dtype, 2, 896)
    yield cache_write(bench, rng, dtype, 29)
