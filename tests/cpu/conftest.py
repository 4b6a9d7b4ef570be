"""A CPU session, poisoned caches, and small float64 references in plain loops that share nothing with the backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import opsocket
from opsocket.operators import AttentionBatch, AttentionSpec, Cache, CacheSpec, Session


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    with opsocket.open("cpu", threads=1) as opened:
        yield opened


def _sees(spec: AttentionSpec, batch: AttentionBatch, r: int, i: int, j: int, tree: np.ndarray | None) -> bool:
    p, at = _query_position(batch, r, i), _key_start(batch, r) + j
    if spec.window_left is not None and at < p - spec.window_left:
        return False
    if spec.window_right is not None and at > p + spec.window_right:
        return False
    if spec.mask == "causal":
        return at <= p
    if spec.mask == "full":
        return True
    q_len = int(batch.q_indptr[r + 1] - batch.q_indptr[r])
    new = j - (int(batch.kv_lens[r]) - q_len)
    if new < 0:
        return True
    bit = i * q_len + new
    return bool(tree[int(batch.mask_indptr[r]) + bit // 8] >> (bit % 8) & 1)


def _key_start(batch: AttentionBatch, r: int) -> int:
    return batch.kv_start if isinstance(batch.kv_start, int) else int(batch.kv_start[r])


def _query_position(batch: AttentionBatch, r: int, i: int) -> int:
    if batch.q_positions is not None:
        return int(batch.q_positions[batch.q_indptr[r] + i])
    q_len = int(batch.q_indptr[r + 1] - batch.q_indptr[r])
    start = _key_start(batch, r) + int(batch.kv_lens[r]) - q_len if batch.q_start is None else int(batch.q_start[r])
    return start + i


@pytest.fixture(scope="session")
def attention_reference() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(spec, batch, q, keys per request, values per request, sinks, slopes, tree) -> out, lse, one query at a time."""

    def reference(
        spec: AttentionSpec,
        batch: AttentionBatch,
        q: np.ndarray,
        keys: list[np.ndarray],
        values: list[np.ndarray],
        sinks: np.ndarray | None = None,
        slopes: np.ndarray | None = None,
        tree: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = int(batch.q_indptr[-1])
        out = np.zeros((rows, spec.num_q_heads, spec.head_dim_vo))
        lse = np.full((rows, spec.num_q_heads), -np.inf)
        for r in range(len(batch.kv_lens)):
            for i in range(int(batch.q_indptr[r + 1] - batch.q_indptr[r])):
                row = int(batch.q_indptr[r]) + i
                seen = [j for j in range(int(batch.kv_lens[r])) if _sees(spec, batch, r, i, j, tree)]
                for h in range(spec.num_q_heads):
                    k = keys[r][seen, h // spec.group].astype(np.float64)
                    v = values[r][seen, h // spec.group].astype(np.float64)
                    logits = spec.scale * (k @ q[row, h].astype(np.float64))
                    if spec.softcap is not None:
                        logits = spec.softcap * np.tanh(logits / spec.softcap)
                    if slopes is not None:
                        at = _key_start(batch, r) + np.array(seen, int)
                        logits = logits - float(slopes[h]) * np.abs(at - _query_position(batch, r, i))
                    everything = list(logits) + ([] if sinks is None else [float(sinks[h])])
                    if everything:
                        top = max(everything)
                        total = math.fsum(math.exp(x - top) for x in everything)
                        lse[row, h] = top + math.log(total)
                        out[row, h] = np.exp(logits - lse[row, h]) @ v if seen else 0.0
        return out, lse

    return reference


def _poison(cache: Cache) -> None:
    """Every byte 0xFF: NaN in every float type and in every scale, the lowest or highest code elsewhere."""
    for plane in cache.planes.values():
        plane.view(torch.uint8).fill_(0xFF)


@pytest.fixture
def poisoned_cache(session: Session) -> Callable[..., Cache]:
    def allocate(spec: CacheSpec, **scales: Any) -> Cache:
        cache = session.allocate_cache(spec, **scales)
        _poison(cache)
        return cache

    return allocate


@pytest.fixture(scope="session")
def deal_blocks() -> Callable[..., tuple[np.ndarray, list[np.ndarray]]]:
    """(rng, kv_lens, block_size, num_blocks) -> block_table with invalid entries past the end, and slots by request."""

    def deal(
        rng: np.random.Generator, kv_lens: list[int], block_size: int, num_blocks: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        used = [-(-n // block_size) for n in kv_lens]
        table = np.full((len(kv_lens), max([*used, 0]) + 2), 2**31 - 1, np.int32)
        blocks = rng.permutation(num_blocks)[: sum(used)]
        slots = []
        for r, (n, count) in enumerate(zip(kv_lens, used, strict=True)):
            mine, blocks = blocks[:count], blocks[count:]
            table[r, :count] = mine
            j = np.arange(n)
            slots.append(mine[j // block_size] * block_size + j % block_size if n else np.zeros(0, np.int64))
        return table, slots

    return deal
