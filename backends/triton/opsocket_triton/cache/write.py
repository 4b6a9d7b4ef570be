"""cache_write: rows of k and v quantized in registers and scattered by slot."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import Cache, CacheWritePlan, KVFormat, SlotBatch
from opsocket_triton.cache.codes import encode_f8, encode_integer
from opsocket_triton.cache.planes import as_bytes, tile_of
from opsocket_triton.cache.tables import DeviceTable, first_rows
from opsocket_triton.launch import launch


@triton.jit(do_not_specialize=("heads", "block_size"))
def write_rows(
    table,
    k,
    v,
    k_plane,
    v_plane,
    k_stored,
    v_stored,
    k_static,
    v_static,
    k_row,
    v_row,
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
    """Heads ROWS * program 0 and on, counted through all tokens, of k where program 1 is 0, else of v.

    table i64[N + 1, 2]: (N, -), then for each token its row in k and v and its first row in the planes. k: [T, heads,
    K_DIM]. k_plane: codes (block, head, token, dim), f8 as bytes. k_stored: token_head's scales. k_static: f32.
    """
    if v is None:
        _write(table, k, k_plane, k_stored, k_static, k_row, heads, block_size, K_CODE, K_SCALE, K_DIM, WIDE, ROWS)
    elif tl.program_id(1) == 0:
        _write(table, k, k_plane, k_stored, k_static, k_row, heads, block_size, K_CODE, K_SCALE, K_DIM, WIDE, ROWS)
    else:
        _write(table, v, v_plane, v_stored, v_static, v_row, heads, block_size, V_CODE, V_SCALE, V_DIM, WIDE, ROWS)


@triton.jit
def _write(
    table,
    values,
    plane,
    stored,
    static,
    stride,
    heads,
    block_size,
    CODE: tl.constexpr,
    SCALE: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    number = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = number // heads
    head = number % heads
    inside = token < tl.load(table)
    from_row = tl.load(table + 2 + 2 * token, mask=inside, other=0)
    to_row = tl.load(table + 3 + 2 * token, mask=inside, other=0) + head * block_size
    column = tl.arange(0, WIDE)
    mask = inside[:, None] & (column < DIM)[None, :]
    value = tl.load(values + (from_row * stride + head * DIM)[:, None] + column[None, :], mask=mask, other=0.0)
    if CODE == "f32" or CODE == "f16" or CODE == "bf16":
        out = plane + (to_row * DIM)[:, None] + column[None, :]
        tl.store(out, value.to(plane.dtype.element_ty), mask=mask)
    else:
        x = value.to(tl.float32)
        if SCALE == "token_head":
            # As integers, the bits of sizes rise with the sizes, and those of NaN lie above them all.
            size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
            scale = tl.math.div_rn(tl.max(size, 1).to(tl.float32, bitcast=True), _largest(CODE))
            scale = scale.to(stored.dtype.element_ty)
            tl.store(stored + to_row, scale, mask=inside)
            scale = scale.to(tl.float32)[:, None]
            x = tl.where(scale == 0.0, 0.0, tl.math.div_rn(x, scale))
        elif SCALE == "tensor":
            x = tl.math.div_rn(x, tl.load(static))
        elif SCALE == "head":
            x = tl.math.div_rn(x, tl.load(static + head)[:, None])
        elif SCALE == "channel":
            scale = tl.load(static + (head * DIM)[:, None] + column[None, :], mask=mask, other=1.0)
            x = tl.math.div_rn(x, scale)
        if CODE == "i8":
            code = encode_integer(x, 127).to(tl.int8)
            tl.store(plane + (to_row * DIM)[:, None] + column[None, :], code, mask=mask)
        elif CODE == "i4":
            low, high = tl.split((encode_integer(x, 7) + 8).reshape(ROWS, WIDE // 2, 2))
            byte = tl.arange(0, WIDE // 2)
            inner = inside[:, None] & (byte < DIM // 2)[None, :]
            packed = (low | (high << 4)).to(tl.uint8)
            tl.store(plane + (to_row * (DIM // 2))[:, None] + byte[None, :], packed, mask=inner)
        elif CODE == "i2":
            even, odd = tl.split((encode_integer(x, 1) + 2).reshape(ROWS, WIDE // 4, 2, 2))
            first, third = tl.split(even)
            second, fourth = tl.split(odd)
            byte = tl.arange(0, WIDE // 4)
            inner = inside[:, None] & (byte < DIM // 4)[None, :]
            packed = (first | (second << 2) | (third << 4) | (fourth << 6)).to(tl.uint8)
            tl.store(plane + (to_row * (DIM // 4))[:, None] + byte[None, :], packed, mask=inner)
        else:
            tl.store(plane + (to_row * DIM)[:, None] + column[None, :], encode_f8(x, CODE), mask=mask)


@triton.jit
def _largest(CODE: tl.constexpr):
    """`KVFormat.max_code`."""
    if CODE == "i8":
        return 127.0
    elif CODE == "i4":
        return 7.0
    elif CODE == "i2":
        return 1.0
    elif CODE == "f8e4m3fn":
        return 448.0
    elif CODE == "f8e4m3fnuz":
        return 240.0
    else:
        return 57344.0


class TritonCacheWrite(CacheWritePlan):
    """One launch for k and v. Skipped tokens are left out of the table, and cost nothing.

    Bytes per token: those of k and v read, their codes and scales written. Memory is the limit; a step of decoding
    writes so few tokens that the launch is.
    """

    capture_level = "any"

    def _setup(self) -> None:
        spec, tokens = self.cache_spec, self.request.bounds.max_tokens
        capacity = spec.num_slots if tokens is None else min(tokens, spec.num_slots)  # no slot is written twice
        self._table = DeviceTable(self.session, capacity, 2)

    def _update(self, batch: SlotBatch) -> None:
        slots = np.asarray(batch.slots, np.int64)
        rows = np.flatnonzero(slots >= 0)
        self._table.write(rows, first_rows(slots[rows], self.cache_spec))
        self._count = len(rows)

    def _run(self, cache: Cache, k: torch.Tensor, v: torch.Tensor | None) -> Cache:
        spec, planes = cache.spec, cache.planes
        # A replay may have more tokens than this batch, and never more than fit into k or into the cache.
        tokens = self._count if self.session.capturing is None else min(k.shape[0], self._table.capacity)
        tile = tile_of(spec, tokens)
        launch(
            write_rows,
            (triton.cdiv(tokens * spec.num_kv_heads, tile.rows), 1 if v is None else 2),
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
            k_row=k.stride(0),
            v_row=0 if v is None else v.stride(0),
            heads=spec.num_kv_heads,
            block_size=spec.block_size,
            **formats(spec.k, spec.v),
            K_DIM=spec.head_dim_k,
            V_DIM=spec.head_dim_v,
            WIDE=tile.wide,
            ROWS=tile.rows,
        )
        return cache


def formats(k: KVFormat, v: KVFormat | None) -> dict[str, str]:
    """Codes and granularities as the kernels take them; those of v are k's where the cache has no v."""
    v = v or k
    return {"K_CODE": k.code, "V_CODE": v.code, "K_SCALE": k.granularity, "V_SCALE": v.granularity}
