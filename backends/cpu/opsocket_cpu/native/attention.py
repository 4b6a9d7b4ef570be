"""Attention of every kind over tiled or contiguous keys and values."""

from __future__ import annotations

from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import torch

from opsocket.operators import AttentionBatch, AttentionPlan, AttentionSpec, Cache, Ragged, Reason, Unsupported
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.native.batch import BatchArrays
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan, address
from opsocket_cpu.native.tiles import NUMBERS, KVTilesPair, TileFacts

_MASKS = {"causal": 0, "full": 1, "tree": 2}
_UNLIMITED = 2**63 - 1
_SPLIT_QUERIES = 8
_SPLIT_BYTES = 1 << 20
"""Of a thread's own memory, for the rows of a sequence that is split over its keys."""


class BatchStruct(Structure):
    """A step's batch as kernels take it, at an address that stays."""

    _fields_ = (
        ("sequences", c_int64), ("table_width", c_int64),
        ("q_indptr", c_void_p), ("kv_lens", c_void_p), ("block_table", c_void_p), ("kv_indptr", c_void_p),
        ("q_start", c_void_p), ("q_positions", c_void_p), ("mask_indptr", c_void_p),
    )  # fmt: skip


class AttentionCommand(Command):
    _fields_ = (
        ("batch", c_void_p),
        ("q", c_void_p), ("q_stride", c_int64),
        ("out", c_void_p), ("out_stride", c_int64),
        ("lse", c_void_p), ("lse_stride", c_int64),
        ("sinks", c_void_p), ("slopes", c_void_p), ("tree", c_void_p),
        ("cache", KVTilesPair),
        ("k", c_void_p), ("v", c_void_p), ("k_stride", c_int64), ("v_stride", c_int64),
        ("window_left", c_int64), ("window_right", c_int64),
        ("q_heads", c_int32), ("kv_heads", c_int32), ("dim_qk", c_int32), ("dim_vo", c_int32),
        ("q_dtype", c_int32), ("kv_dtype", c_int32), ("out_dtype", c_int32), ("mask", c_int32),
        ("scale", c_float), ("softcap", c_float), ("bf16_probabilities", c_int32), ("split_queries", c_int32),
    )  # fmt: skip


class NativeAttention(NativePlan, AttentionPlan):
    """f32 inside, but for products of bf16 by bf16, and for what `numerics.probabilities` permits.

    `batch.host_exact=False` is Unsupported: work is cut from the host's lengths.
    """

    any_rows = True

    def _setup(self) -> None:
        super()._setup()
        spec = self.spec
        right = _UNLIMITED if spec.window_right is None else spec.window_right
        self._batch = BatchStruct()
        self._arrays = BatchArrays(np.int32, np.int32, np.int32, np.int64, np.int64, np.int64, np.int64)
        self._split, slot = _split(spec)
        self._workspace = 2 * self._threads * slot
        cache = self.request.cache
        self._tiles = None if cache is None else TileFacts(cache)
        self._facts = (
            _UNLIMITED if spec.window_left is None else spec.window_left, 0 if spec.mask == "causal" else right,
            spec.num_q_heads, spec.num_kv_heads, spec.head_dim_qk, spec.head_dim_vo,
            DTYPES[spec.q_dtype], DTYPES[spec.kv_dtype], DTYPES[spec.out_dtype], _MASKS[spec.mask],
            spec.scale, spec.softcap or 0.0, spec.numerics.probabilities == "bf16", self._split,
        )  # fmt: skip

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        q_start, q_positions = batch.q_start, batch.q_positions
        if q_start is not None:
            q_start = np.asarray(q_start, np.int64) - batch.kv_start
        if q_positions is not None:
            start = (
                batch.kv_start
                if isinstance(batch.kv_start, int)
                else np.repeat(batch.kv_start, np.diff(batch.q_indptr))
            )
            q_positions = np.asarray(q_positions, np.int64) - start
        kv_lens, table = np.asarray(batch.kv_lens), _array(batch.block_table)
        addresses = self._arrays.take((
            np.asarray(batch.q_indptr), kv_lens, table, _array(batch.kv_indptr), q_start, q_positions,
            _array(batch.mask_indptr),
        ))  # fmt: skip
        if addresses is not None:
            self._batch.__init__(len(kv_lens), 0 if table is None else table.shape[1], *addresses)  # type: ignore[misc]

    def _outputs(
        self,
        q: torch.Tensor,
        kv: Cache | Ragged,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        out: torch.Tensor | None,
        lse_out: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        spec = self.spec
        if out is None:
            out = torch.empty(len(q), spec.num_q_heads, spec.head_dim_vo, dtype=TORCH_DTYPES[spec.out_dtype])
        if spec.want_lse and lse_out is None:
            lse_out = torch.empty(len(q), spec.num_q_heads)
        return out, lse_out

    def _command(
        self,
        result: tuple[torch.Tensor, torch.Tensor | None],
        q: torch.Tensor,
        kv: Cache | Ragged,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        out: torch.Tensor | None,
        lse_out: torch.Tensor | None,
    ) -> bytes:
        y, lse = result
        tiles: tuple[int, ...]
        if isinstance(kv, Ragged):
            tiles, keys = (0,) * NUMBERS, (kv.k.data_ptr(), kv.v.data_ptr(), kv.k.stride(0), kv.v.stride(0))
        else:
            assert self._tiles is not None
            tiles, keys = self._tiles.numbers("kv", kv), (0, 0, 0, 0)
        return AttentionCommand.pack(
            Op.ATTENTION, 1, self._workspace, addressof(self._batch),
            q.data_ptr(), q.stride(0), y.data_ptr(), y.stride(0), address(lse), 0 if lse is None else lse.stride(0),
            address(sinks), address(alibi), address(tree_mask), *tiles, *keys, *self._facts,
        )  # fmt: skip


def _split(spec: AttentionSpec) -> tuple[int, int]:
    """Queries up to which a sequence is split over its keys, and the bytes of the state of so many (attention.cpp)."""
    width = -(-spec.head_dim_vo // 16) * 16
    row = 4 * (spec.head_dim_qk + width) + 64
    queries = min(_SPLIT_QUERIES, _SPLIT_BYTES // (row * spec.num_q_heads))
    rows = queries * spec.num_q_heads
    return queries, 4 * (rows * width + 2 * (-(-rows // 16) * 16))


def _array(values: Any) -> np.ndarray | None:
    return None if values is None else np.asarray(values)
