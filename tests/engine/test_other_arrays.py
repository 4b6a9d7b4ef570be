"""The engine on a session whose arrays are NumPy's and never change: a second, plain implementation of every operator.

Where it agrees with the CPU backend, the engine has used no array by anything but its session, and has taken every
cache that an operator returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from opsocket.operators import (
    ArgmaxPlan,
    ArrayInfo,
    AttentionPlan,
    Backend,
    BackendInfo,
    Cache,
    CacheCopyBlocksPlan,
    CacheLayout,
    CacheSpec,
    CacheWritePlan,
    DeviceInfo,
    EmbeddingPlan,
    MatmulPlan,
    Memory,
    PackedWeight,
    Pick,
    Plane,
    Provider,
    Reason,
    Request,
    RMSNormPlan,
    RopePlan,
    SamplePlan,
    Session,
    SessionOptions,
    SiluMulPlan,
    TakeRowsPlan,
)
from opsocket.quantization import dequantize, get_format
from opsocket_engine.config import RopeConfig
from opsocket_engine.sampling import SamplingParams


class _Weight:
    weight_layouts = ("rows",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec: Any = request.spec
        values = dequantize(get_format(spec.weight_format), tensors, spec.n, spec.k)
        return PackedWeight(spec.weight_format, spec.n, spec.k, "rows", values, values.nbytes)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> np.ndarray:
        return packed.content


class Matmul(_Weight, MatmulPlan):
    def _run(self, x, packed, bias, out):
        return x @ packed.content.T + (0 if bias is None else bias)


class Embedding(_Weight, EmbeddingPlan):
    def _run(self, ids, packed, out):
        return packed.content[ids]


class RMSNorm(RMSNormPlan):
    def _run(self, x, weight, residual, out, residual_out):
        total = x if residual is None else x + residual
        mean = np.square(total).mean(-1, keepdims=True)
        normed = (total / np.sqrt(mean + np.float32(self.request.spec.eps)) * weight).astype(np.float32)
        return normed if residual is None else (normed, total)


class Rope(RopePlan):
    def _run(self, x, positions, factors, out):
        spec = self.request.spec
        angles = positions[:, None, None] * spec.theta ** (-np.arange(0, spec.rotary_dim, 2) / spec.rotary_dim)
        pairs = x.reshape(*x.shape[:2], -1, 2) if spec.interleaved else np.stack(np.split(x, 2, -1), -1)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
        parts = turned.real.astype(np.float32), turned.imag.astype(np.float32)
        return np.stack(parts, -1).reshape(x.shape) if spec.interleaved else np.concatenate(parts, -1)


class SiluMul(SiluMulPlan):
    def _run(self, gate, up, out):
        return gate / (1 + np.exp(-gate)) * up


class TakeRows(TakeRowsPlan):
    def _run(self, x, rows, out):
        return x[rows]


class Argmax(ArgmaxPlan):
    def _run(self, logits, out):
        return logits.argmax(-1)


class Sample(SamplePlan):
    def _run(self, logits, out):
        return np.array([self._one(i, row.astype(np.float64)) for i, row in enumerate(logits)])

    def _one(self, i, row):
        batch, history = self.batch, slice(*self.batch.history_indptr[i : i + 2])
        ids, counts = batch.history_ids[history], batch.history_counts[history]
        repeated = np.where(row[ids] > 0, row[ids] / batch.repetition[i], row[ids] * batch.repetition[i])
        row[ids] = repeated - batch.frequency[i] * counts - batch.presence[i]
        if batch.temperature[i] == 0:
            return row.argmax()
        order = np.argsort(-row, kind="stable")[: batch.top_k[i] or None]
        shares = np.exp((row[order] - row[order[0]]) / batch.temperature[i])
        nucleus = np.searchsorted(np.cumsum(shares) / shares.sum(), batch.top_p[i]) + 1
        kept = shares[:nucleus] >= batch.min_p[i] * shares[0]
        cumulative = np.cumsum(shares[:nucleus] * kept)
        return order[np.searchsorted(cumulative / cumulative[-1], batch.uniform[i], side="right")]


class CacheWrite(CacheWritePlan):
    def _run(self, cache, k, v):
        planes = {name: plane.copy() for name, plane in cache.planes.items()}
        planes["k"][self.batch.slots], planes["v"][self.batch.slots] = k, v
        return cache.with_planes(planes)


class CacheCopyBlocks(CacheCopyBlocksPlan):
    def _run(self, src, dst):
        pairs, block = self.batch.pairs, np.arange(dst.spec.block_size)
        source, target = ((pairs[:, i, None] * dst.spec.block_size + block).ravel() for i in (0, 1))
        planes = {name: plane.copy() for name, plane in dst.planes.items()}
        for name, plane in planes.items():
            plane[target] = src.planes[name][source]
        return dst.with_planes(planes)


class Attention(AttentionPlan):
    def _run(self, q, kv, sinks, alibi, tree_mask, out, lse_out):
        spec, batch, size = self.spec, self.batch, kv.spec.block_size
        out = np.zeros((len(q), spec.num_q_heads, spec.head_dim_vo), np.float32)
        for i, kv_len in enumerate(batch.kv_lens):
            rows = slice(batch.q_indptr[i], batch.q_indptr[i + 1])
            j = np.arange(kv_len)
            slots = batch.block_table[i][j // size] * size + j % size
            k, v = (np.repeat(kv.planes[name][slots], spec.group, 1) for name in "kv")
            scores = np.einsum("qhd,khd->hqk", q[rows], k) * spec.scale
            scores[:, j > np.arange(kv_len)[j[-1] + 1 - (rows.stop - rows.start) :, None]] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[rows] = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)
        return out, None


KERNELS = {
    "argmax": Argmax,
    "attention": Attention,
    "cache_copy_blocks": CacheCopyBlocks,
    "cache_write": CacheWrite,
    "embedding": Embedding,
    "matmul": Matmul,
    "rms_norm": RMSNorm,
    "rope": Rope,
    "sample": Sample,
    "silu_mul": SiluMul,
    "take_rows": TakeRows,
}


def slot_layout(cache: CacheSpec) -> CacheLayout:
    shape = (cache.num_slots, cache.num_kv_heads, cache.head_dim_k)
    planes = tuple(Plane(name, shape, "f32", ("token", "head", "dim")) for name in "kv")
    return CacheLayout("slots", planes, cache.block_size, cache.block_size * shape[1] * shape[2] * 8)


class PlainProvider(Provider):
    name = "plain"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if request.op in KERNELS:
            return Pick(KERNELS[request.op])
        return (Reason("op", "op", request.op, sorted(KERNELS)),)

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        return (slot_layout(cache),)


class PlainBackend(Backend):
    info = BackendInfo("plain", "1", ">=1.0,<2", "none")

    def devices(self) -> Sequence[DeviceInfo]:
        return [DeviceInfo("plain", 0, "NumPy", "any", 1 << 30)]

    def providers(self) -> Sequence[Provider]:
        return [PlainProvider()]

    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        return PlainSession(self, device, options)


class PlainSession(Session):
    array_type = np.ndarray
    in_place = False

    def allocate_cache(
        self,
        cache: CacheSpec,
        layout: CacheLayout | None = None,
        k_scale: np.ndarray | None = None,
        v_scale: np.ndarray | None = None,
    ) -> Cache:
        slots = slot_layout(cache)
        planes = {plane.name: frozen(np.full(plane.shape, np.nan, np.float32)) for plane in slots.planes}
        return Cache(cache, slots, planes, device=str(self.device))

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return frozen(np.empty(shape, dtype.replace("f", "float").replace("i", "int")))

    def upload(self, array: np.ndarray, dtype: str | None = None) -> np.ndarray:
        return frozen(np.array(array))

    def download(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def write(self, array: np.ndarray, values: np.ndarray) -> np.ndarray:
        return frozen(np.concatenate([values, array[len(values) :]]))

    def view(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return array.reshape(shape)

    def split(self, array: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
        return tuple(np.split(array, np.cumsum(sizes)[:-1], axis=-1))

    def describe(self, array: np.ndarray) -> ArrayInfo:
        return ArrayInfo(array.shape, f"{array.dtype.kind}{array.itemsize * 8}", None, str(self.device))

    def synchronize(self) -> None:
        pass

    def memory(self) -> Memory:
        return Memory(None, 1 << 30)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def plain() -> Session:
    backend = PlainBackend()
    return backend.open(backend.devices()[0], SessionOptions())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True, "qk_norm": True, "tie_embeddings": True},
        {"rope": RopeConfig(theta=500.0, rotary_dim=16, interleaved=True)},
    ],
    ids=["llama", "biases, norms, tied", "interleaved"],
)
def test_logits_agree(session, plain, tiny, engine_logits, changes):
    checkpoint = tiny({"layers.0.q_proj": "q4_1", "layers.1.down_proj": "i8_channel"}, **changes)
    prompts = [[1, 2, 3], list(range(40)), [9]]
    for ours, theirs in zip(*(engine_logits(s, checkpoint, prompts) for s in (session, plain)), strict=True):
        assert np.abs(ours - theirs).max() < 5e-5


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=20, ignore_eos=True),
        SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.8, top_k=30, top_p=0.9, presence_penalty=0.2, n=2),
    ],
    ids=["greedy", "sampled, in two samples"],
)
def test_texts_agree(session, plain, tiny, generate_ids, params):
    prompts = [list(range(30)), [5, 6], list(range(40)), [7] * 9]
    options = {"num_blocks": 9, "max_step_tokens": 16}
    (ours, our_stats), (theirs, their_stats) = (
        generate_ids(s, tiny(), prompts, params, **options) for s in (session, plain)
    )
    assert ours == theirs
    assert our_stats.preemptions == their_stats.preemptions > 0
