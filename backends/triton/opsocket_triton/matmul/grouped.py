"""A product for each expert: rows sorted by expert, one weight for each."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from opsocket.operators import GroupedMatmulPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket.quantization import get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_triton.launch import launch
from opsocket_triton.matmul import tiles, weights
from opsocket_triton.matmul.accepted import GROUPED
from opsocket_triton.matmul.activation import Quantized, quantize, room
from opsocket_triton.matmul.operands import compute_units, operand_of
from opsocket_triton.matmul.rows import OverWeights
from opsocket_triton.matmul.sums import float_sums, integer_sums, scaled_by_row
from opsocket_triton.workspace import Workspace

ACCEPTED = GROUPED


@triton.jit
def _place(offsets, experts, slot, rows, BM: tl.constexpr, EXPERTS: tl.constexpr):
    """Expert, first row and end of the rows of tile number `slot` of all experts' tiles, in order; expert is `experts`
    or more where there are fewer tiles."""
    e = tl.arange(0, EXPERTS)
    first = tl.load(offsets + e, mask=e < experts, other=0)
    end = tl.minimum(tl.load(offsets + e + 1, mask=e < experts, other=0), rows)
    count = (tl.maximum(end - first, 0) + BM - 1) // BM
    before_next = tl.cumsum(count, 0)
    expert = tl.sum((before_next <= slot).to(tl.int32), 0)
    mine = e == expert
    start = tl.sum(tl.where(mine, first + (slot - before_next + count) * BM, 0), 0)
    return expert, start, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit
def _pointer(table, expert, WHICH: tl.constexpr, like):
    """One of an expert's addresses, as a pointer of the type of `like`, on a multiple of 16 bytes."""
    if like is None:
        return None
    else:
        address = tl.load(table + expert.to(tl.int64) * 4 + WHICH)
        return tl.multiple_of(address.to(like.dtype), 16)


@triton.jit(do_not_specialize=["rows", "experts"])
def permute_by_expert(
    x, offsets, table, permutation, out, x_row, rows, experts, k, EXPERTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out[r, j] = x[r, p[j]] with the permutation of the expert that has row r = program 0, BLOCK columns of program 1.

    permutation: an example of what the table has the addresses of; 0: that expert's columns are in order.
    """
    row = tl.program_id(0)
    e = tl.arange(0, EXPERTS)
    end = tl.load(offsets + e + 1, mask=e < experts, other=rows)
    expert = tl.minimum(tl.sum((end <= row).to(tl.int32), 0), experts - 1)
    address = tl.load(table + expert.to(tl.int64) * 4 + 3)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < k
    column = tl.load(address.to(permutation.dtype) + j, mask=inside & (address != 0), other=0)
    column = tl.where(address == 0, j, column)
    values = tl.load(x + row.to(tl.int64) * x_row + column, mask=inside, other=0)
    tl.store(out + row.to(tl.int64) * k + j, values, mask=inside)


@triton.jit
def _store(sums, bias, out, m, n, in_m, in_n, expert, columns, out_row):
    if bias is not None:
        sums += tl.load(bias + expert.to(tl.int64) * columns + n, mask=in_n, other=0)[None, :]
    place = m[:, None] * out_row + n[None, :]
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


@triton.jit(do_not_specialize=["rows", "experts"])
def grouped_tiles(
    x, offsets, table, stored, scale, minimum, bias, out,
    x_row, w_row, scale_row, out_row, rows, experts, columns, k, width,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, OPERAND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """As `product_tiles`, for one tile of one expert: program 0 is the tile down, over all experts, times tiles across.

    offsets: i64 [experts + 1]. table: i64 [experts, 4], addresses of each one's arrays, of which those given
    are an example. EXPERTS: a power of two of at least so many. Which expert has a tile is found out here,
    since only the device knows; programs beyond the last tile end. Limited by memory: the weights of every expert
    that has rows, once for each of its tiles down.
    """
    across = tl.cdiv(columns, BN)
    expert, start, end = _place(offsets, experts, tl.program_id(0) // across, rows, BM, EXPERTS)
    if expert < experts:
        m = start + tl.arange(0, BM)
        n = tl.program_id(0) % across * BN + tl.arange(0, BN)
        in_n = n < columns
        own_scale = _pointer(table, expert, 1, scale)
        sums = float_sums(
            x, tl.minimum(m, end - 1) * x_row, _pointer(table, expert, 0, stored),
            tl.minimum(n, columns - 1).to(tl.int64) * w_row, n, in_n, own_scale, _pointer(table, expert, 2, minimum),
            scale_row, k, 0, width, BITS, OFFSET, GROUP, OPERAND, BM, BN, DEPTH,
        )  # fmt: skip
        sums = scaled_by_row(sums, own_scale, n, in_n, GROUP, BITS)
        _store(sums, bias, out, m, n, m < end, in_n, expert, columns, out_row)


@triton.jit(do_not_specialize=["rows", "experts"])
def grouped_codes(
    codes, x_scale, x_sums, offsets, table, stored, scale, minimum, bias, out,
    codes_row, w_row, scale_row, out_row, rows, experts, columns, width,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, PIECE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DEPTH: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """As `grouped_tiles`, of int8 codes."""
    across = tl.cdiv(columns, BN)
    expert, start, end = _place(offsets, experts, tl.program_id(0) // across, rows, BM, EXPERTS)
    if expert < experts:
        m = start + tl.arange(0, BM)
        n = tl.program_id(0) % across * BN + tl.arange(0, BN)
        in_m, in_n = m < end, n < columns
        own_scale = _pointer(table, expert, 1, scale)
        sums = integer_sums(
            codes, tl.minimum(m, end - 1) * codes_row, x_scale, x_sums, m, in_m, rows,
            _pointer(table, expert, 0, stored), tl.minimum(n, columns - 1).to(tl.int64) * w_row, n, in_n,
            own_scale, _pointer(table, expert, 2, minimum), scale_row, 0, width,
            BITS, OFFSET, GROUP, X_GROUP, PIECE, BM, BN, DEPTH,
        )  # fmt: skip
        sums = scaled_by_row(sums.to(tl.float32), own_scale, n, in_n, GROUP, BITS)
        if X_GROUP == 0:
            sums *= tl.load(x_scale + m, mask=in_m, other=0)[:, None]
        _store(sums, bias, out, m, n, in_m, in_n, expert, columns, out_row)


class _Tables:
    """Where the arrays of each expert are: i64 [E, 4] on the device, for every tuple of weights that was seen.

    A table is joined on the device from what `prepare_weight` put there for each weight, without the host, when a tuple
    comes for the first time; it goes when one of its weights goes.
    """

    def __init__(self) -> None:
        self._tables: dict[tuple[int, ...], torch.Tensor] = {}

    def of(self, contents: tuple[weights.Weight, ...]) -> torch.Tensor:
        key = tuple(map(id, contents))
        table = self._tables.get(key)
        if table is None:
            table = torch.cat([content.addresses for content in contents])
            self._tables[key] = table
            for content in set(contents):
                weakref.finalize(content, self._tables.pop, key, None)
        return table


class TritonGroupedMatmul(OverWeights, GroupedMatmulPlan):
    """One launch for all experts, its grid that of the most tiles that so many rows can make.

    `run` allocates nothing, but for a table of addresses (32 bytes for each expert) when it is given other weights than
    ever before.
    """

    capture_level = "any"

    def _setup(self) -> None:
        fmt = get_format(self.spec.weight_format)
        self._family = tiles.family(self.session.device.arch)
        self._units = compute_units(self.session)
        self._workspace = Workspace(self)
        self._tables = _Tables()
        self._form = weights.form_of(fmt, self.spec.k)
        self._is_quantized = fmt.activation != "none"
        self._x_group = ACTIVATION_GROUP if fmt.activation == "i8_g32" else 0
        self._piece = tiles.piece(self._form.bits, self._form.group, self._x_group) if self._is_quantized else 0
        self._operand = operand_of(self.session.device, self.spec, fmt)
        most = self.request.bounds.max_tokens
        if most and self._is_quantized:
            self._room(most)
        if most and fmt.g_idx:
            self._workspace.take("permuted", (most, self.spec.k), TORCH_DTYPES[self.spec.x_dtype])

    def _run(
        self,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        spec, rows = self.spec, len(x)
        if out is None:
            out = torch.empty(rows, spec.n, dtype=TORCH_DTYPES[spec.out_dtype], device=x.device)
        if rows == 0:
            return out
        contents: tuple[weights.Weight, ...] = tuple(weight.content for weight in packed)
        shared = {
            "offsets": expert_offsets,
            "table": self._tables.of(contents),
            "rows": rows,
            "experts": spec.num_experts,
            "EXPERTS": triton.next_power_of_2(spec.num_experts),
            "reached": [array for content in contents for array in content.arrays],
        }
        permutation = next((c.permutation for c in contents if c.permutation is not None), None)
        if permutation is not None:
            x = self._in_order(x, permutation, shared)
        weight = weights.arguments(contents[0]) | {"columns": spec.n, "bias": bias}
        multiply = self._codes if self._is_quantized else self._floats
        multiply(x, out=out, out_row=out.stride(0), **shared, **weight)
        return out

    def _in_order(self, x: torch.Tensor, permutation: torch.Tensor, shared: dict[str, Any]) -> torch.Tensor:
        """x, each row's columns in the order of its expert's weight."""
        (rows, k), out = x.shape, self._workspace.take("permuted", x.shape, x.dtype)
        block = 1024
        launch(
            permute_by_expert,
            (rows, triton.cdiv(k, block)),
            x=x,
            permutation=permutation,
            out=out,
            x_row=x.stride(0),
            k=k,
            BLOCK=block,
            **shared,
        )
        return out

    def _room(self, rows: int) -> Quantized:
        width = self._form.width * (8 // self._form.bits)
        return room(self._workspace, rows, width, self._x_group, self._piece, self._form.has_minimum)

    def _floats(self, x: torch.Tensor, **given: Any) -> None:
        tile = tiles.float_tile(self._family, self._operand, self._rows_of_each(x))
        self._start(grouped_tiles, tile, x=x, x_row=x.stride(0), k=self.spec.k, OPERAND=self._operand, **given)

    def _codes(self, x: torch.Tensor, **given: Any) -> None:
        found = quantize(x, None, self._room(len(x)), self._x_group, self._piece, self._units)
        self._start(
            grouped_codes,
            tiles.deep(tiles.code_tile(self._family, self._rows_of_each(x)), self._form.bits, self._piece),
            codes=found.codes,
            x_scale=found.scale,
            x_sums=found.sums,
            codes_row=found.codes.stride(0),
            X_GROUP=self._x_group,
            PIECE=self._piece,
            **given,
        )

    def _rows_of_each(self, x: torch.Tensor) -> int:
        """Rows of an expert, were they shared out evenly: only the device knows better."""
        return -(-len(x) // self.spec.num_experts)

    def _start(self, kernel: Any, tile: tiles.Tile, *, rows: int, experts: int, columns: int, **given: Any) -> None:
        # Each expert has at most one tile that is not full.
        down = min(rows, rows // tile.rows + experts)
        launch(
            kernel,
            (down * triton.cdiv(columns, tile.columns),),
            warps=tile.warps,
            stages=tile.stages,
            rows=rows,
            experts=experts,
            columns=columns,
            BM=tile.rows,
            BN=tile.columns,
            DEPTH=tile.depth,
            **given,
        )
