"""cache_read: a gather by slot, dequantized in registers."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import Cache, CacheReadPlan, CacheReadSpec, SlotBatch
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.cache.codes import decode, fields_per_byte, unpack
from opsocket_triton.cache.planes import as_bytes, tile_of
from opsocket_triton.cache.tables import DeviceTable, first_rows
from opsocket_triton.cache.write import formats
from opsocket_triton.launch import launch


@triton.jit(do_not_specialize=("heads", "block_size"))
def read_rows(
    table,
    k,
    v,
    k_plane,
    v_plane,
    k_stored,
    v_stored,
    k_static,
    v_static,
    heads,
    block_size,
    K_CODE: tl.constexpr,
    V_CODE: tl.constexpr,
    K_SCALE: tl.constexpr,
    V_SCALE: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Heads ROWS * program 0 and on, counted through all slots, of k where program 1 is 0, else of v.

    table i64[N + 1, 1]: N, then each slot's first row in the planes. k: [N, heads, K_DIM].
    The planes and scales are those of `write_rows`.
    """
    if v is None:
        _read(table, k, k_plane, k_stored, k_static, heads, block_size, K_CODE, K_SCALE, K_DIM, WIDE, ROWS)
    elif tl.program_id(1) == 0:
        _read(table, k, k_plane, k_stored, k_static, heads, block_size, K_CODE, K_SCALE, K_DIM, WIDE, ROWS)
    else:
        _read(table, v, v_plane, v_stored, v_static, heads, block_size, V_CODE, V_SCALE, V_DIM, WIDE, ROWS)


@triton.jit
def _read(
    table,
    out,
    plane,
    stored,
    static,
    heads,
    block_size,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    FIELDS: tl.constexpr = fields_per_byte(CODE)
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = number // heads
    head = number % heads
    inside = entry < tl.load(table)
    row = tl.load(table + 1 + entry, mask=inside, other=0) + head * block_size
    byte = tl.arange(0, WIDE // FIELDS)
    inner = inside[:, None] & (byte < DIM // FIELDS)[None, :]
    raw = tl.load(plane + (row * (DIM // FIELDS))[:, None] + byte[None, :], mask=inner, other=0)
    column = tl.arange(0, WIDE)
    mask = inside[:, None] & (column < DIM)[None, :]
    where = out + (number.to(tl.int64) * DIM)[:, None] + column[None, :]
    if CODE == "f32" or CODE == "f16" or CODE == "bf16":
        tl.store(where, raw.to(out.dtype.element_ty), mask=mask)
    else:
        values = decode(unpack(raw, CODE), CODE, tl.float32)
        if SCALE == "token_head":
            values *= tl.load(stored + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        elif SCALE == "tensor":
            values *= tl.load(static)
        elif SCALE == "head":
            values *= tl.load(static + head)[:, None]
        elif SCALE == "channel":
            values *= tl.load(static + (head * DIM)[:, None] + column[None, :], mask=mask, other=0.0)
        tl.store(where, values.to(out.dtype.element_ty), mask=mask)


class TritonCacheRead(CacheReadPlan):
    """One launch for k and v. Bytes per slot: its codes and scales read, k and v written; memory is the limit."""

    capture_level = "any"

    def _setup(self) -> None:
        # Slots may repeat: without a bound, any number of them can come.
        self._table = DeviceTable(self.session, self.request.bounds.max_tokens or 0, 1)

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        if len(slots) > self._table.capacity:
            # Never under a graph: core admits no more slots there than the captured run returned.
            self._table = DeviceTable(self.session, 2 * len(slots), 1)
        self._table.write(first_rows(slots, self.cache_spec))
        self._count = len(slots)

    def _run(self, cache: Cache) -> tuple[torch.Tensor, torch.Tensor | None]:
        spec, planes, request = cache.spec, cache.planes, self.request.spec
        assert isinstance(request, CacheReadSpec)
        dtype, shape = TORCH_DTYPES[request.dtype], (self._count, spec.num_kv_heads)
        device = planes["k"].device
        k = torch.empty(*shape, spec.head_dim_k, dtype=dtype, device=device)
        v = None if spec.v is None else torch.empty(*shape, spec.head_dim_v, dtype=dtype, device=device)
        tile = tile_of(spec, self._count)
        launch(
            read_rows,
            (triton.cdiv(self._count * spec.num_kv_heads, tile.rows), 1 if v is None else 2),
            warps=tile.warps,
            table=self._table.entries,
            k=k,
            v=v,
            k_plane=as_bytes(planes["k"]),
            v_plane=None if v is None else as_bytes(planes["v"]),
            k_stored=planes.get("k_scale"),
            v_stored=planes.get("v_scale"),
            k_static=cache.k_scale,
            v_static=cache.v_scale,
            heads=spec.num_kv_heads,
            block_size=spec.block_size,
            **formats(spec.k, spec.v),
            K_DIM=spec.head_dim_k,
            V_DIM=spec.head_dim_v,
            WIDE=tile.wide,
            ROWS=tile.rows,
        )
        return k, v
