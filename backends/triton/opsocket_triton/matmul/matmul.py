"""Matrix products with weights in any format."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, Final

import torch
import triton

from opsocket.operators import MatmulPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket.quantization import get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_triton import tuning
from opsocket_triton.launch import launch
from opsocket_triton.matmul import tiles, weights
from opsocket_triton.matmul.activation import Quantized, permute, quantize, room
from opsocket_triton.matmul.operands import compute_units, operand_of
from opsocket_triton.matmul.products import add_parts, product_codes, product_rows, product_tiles
from opsocket_triton.matmul.rows import OverWeights
from opsocket_triton.matmul.timer import Timer
from opsocket_triton.workspace import Workspace

_MOST_SPLIT_ROWS: Final = 64
"""More rows give enough tiles by themselves, and partial sums of more would cost more than they save."""


_TUNED_ROWS: Final = (1, 2, 4, 8, 16, 64, 512)
"""Each number of rows that there is a tile for, or many."""


def _size(text: str) -> tuple[str, int]:
    kind, _, most = text.partition(" ")
    return kind, int(most)


class TritonMatmul(OverWeights, MatmulPlan):
    """Few rows of floats by `product_rows`, more by `product_tiles`, int8 activations by `product_codes`; K in parts
    where the columns are too few for the device."""

    capture_level = "any"

    def _setup(self) -> None:
        fmt = get_format(self.spec.weight_format)
        self._family = tiles.family(self.session.device.arch)
        self._units = compute_units(self.session)
        self._workspace = Workspace(self)
        self._form = weights.form_of(fmt, self.spec.k)
        self._is_quantized = fmt.activation != "none"
        self._x_group = ACTIVATION_GROUP if fmt.activation == "i8_g32" else 0
        self._piece = tiles.piece(self._form.bits, self._form.group, self._x_group) if self._is_quantized else 0
        self._operand = operand_of(self.session.device, self.spec, fmt)
        self._tuned: dict[tuple[str, int], tiles.Tile] = {}
        if self.request.work in self.session.options.tuned:
            kept = tuning.load(self.session.device).get(self.request.work, {})
            self._tuned = {_size(text): tiles.Tile(*numbers) for text, numbers in kept.items()}
        if self.request.bounds.max_tokens:
            self._reserve(self.request.bounds.max_tokens, fmt.g_idx)

    def _reserve(self, most: int, permutes: bool) -> None:
        """The memory of any run of at most so many rows."""
        if self._is_quantized:
            self._room(most)
        elif permutes:
            self._workspace.take("permuted", (most, self.spec.k), TORCH_DTYPES[self.spec.x_dtype])
        sizes = [rows * self._parts(rows)[1] for rows in range(1, min(most, _MOST_SPLIT_ROWS) + 1)]
        self._workspace.take("partial", (max(sizes), self.spec.n), torch.float32)

    def tune(self, packed: PackedWeight, *, keep: bool) -> None:
        if getattr(self.session, "is_interpreted", False):
            return
        tuned = {}
        for rows in _TUNED_ROWS:
            kind, most = size = self._size(rows)
            if size not in tuned:
                timer = Timer(self, packed, rows, size)
                tuned[size] = tuning.fastest(self._default(kind, most), tiles.others(kind, most), timer.seconds)
                self._tuned = dict(tuned)
        if keep:
            by_size = {f"{kind} {most}": astuple(tile) for (kind, most), tile in tuned.items()}
            tuning.save(self.session.device, self.request.work, by_size)

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(len(x), packed.n, dtype=TORCH_DTYPES[self.spec.out_dtype], device=x.device)
        if len(x) == 0:
            return out
        content: weights.Weight = packed.content
        if isinstance(content, weights.FieldWeight) and self._is_quantized:
            self._codes(x, content, bias, out)
            return out
        if content.permutation is not None:
            x = permute(x, content.permutation, self._workspace.take("permuted", x.shape, x.dtype))
        self._floats(x, content, bias, out)
        return out

    def _size(self, rows: int) -> tuple[str, int]:
        """The kind of kernel for so many rows, and the number of rows that its tile is for."""
        if self._is_quantized:
            kind = "codes"
        elif rows <= tiles.vector_rows(self._family, self._operand):
            kind = "vector"
        else:
            kind = "f32" if self._operand == "f32" else "half"
        sizes = tiles.sizes(self._family, kind)
        return kind, next((most for most in sizes if rows <= most), sizes[-1])

    def _tile(self, rows: int) -> tiles.Tile:
        kind, most = size = self._size(rows)
        tile = self._tuned.get(size) or self._default(kind, most)
        return tiles.deep(tile, self._form.bits, self._piece) if kind == "codes" else tile

    def _default(self, kind: str, most: int) -> tiles.Tile:
        if kind == "vector":
            return tiles.vector_tile(most)
        if kind == "codes":
            return tiles.code_tile(self._family, most)
        return tiles.float_tile(self._family, self._operand, most)

    def _parts(self, rows: int) -> tuple[int, int]:
        """Stored elements of each part of a row, and how many parts there are."""
        tile, width = self._tile(rows), self._form.width
        count = triton.cdiv(rows, tile.rows) * triton.cdiv(self.spec.n, tile.columns)
        part = tiles.part(width, tile, count, self._units if rows <= _MOST_SPLIT_ROWS else 0)
        return part, triton.cdiv(width, part)

    def _room(self, rows: int) -> Quantized:
        width = self._form.width * (8 // self._form.bits)
        return room(self._workspace, rows, width, self._x_group, self._piece, self._form.has_minimum)

    def _floats(self, x: torch.Tensor, content: weights.Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        rows = len(x)
        given: dict[str, Any] = {"x": x, "x_row": x.stride(0), "k": self.spec.k}
        if self._size(rows)[0] == "vector":
            self._multiply(product_rows, content, bias, out, ROWS=self._tile(rows).rows, **given)
        else:
            given |= {"BM": self._tile(rows).rows, "OPERAND": self._operand}
            self._multiply(product_tiles, content, bias, out, **given)

    def _codes(
        self, x: torch.Tensor, content: weights.FieldWeight, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        found = quantize(x, content.permutation, self._room(len(x)), self._x_group, self._piece, self._units)
        self._multiply(
            product_codes,
            content,
            bias,
            out,
            found if self._piece == 0 else None,
            codes=found.codes,
            x_scale=found.scale,
            x_sums=found.sums,
            codes_row=found.codes.stride(0),
            X_GROUP=self._x_group,
            PIECE=self._piece,
            BM=self._tile(len(x)).rows,
        )

    def _multiply(
        self,
        kernel: Any,
        content: weights.Weight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        integers: Quantized | None = None,
        **given: Any,
    ) -> None:
        """Start a kernel, over all of K or in parts that are added up. integers: the rows of x, where its partial sums
        are integers."""
        rows, columns = out.shape
        tile, (part, parts) = self._tile(rows), self._parts(rows)
        count = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        partial = None
        if parts > 1:
            partial = self._workspace.take("partial", (parts, rows, columns), torch.float32)
            partial = partial if integers is None else partial.view(torch.int32)
        weight = weights.arguments(content)
        launch(
            kernel,
            (count, parts),
            warps=tile.warps,
            stages=tile.stages,
            bias=None if parts > 1 else bias,
            out=out,
            partial=partial,
            out_row=out.stride(0),
            rows=rows,
            columns=columns,
            part=part,
            BN=tile.columns,
            DEPTH=tile.depth,
            SPLIT=parts > 1,
            **given,
            **weight,
        )
        if partial is None:
            return
        block = 256
        launch(
            add_parts,
            (triton.cdiv(rows * columns, block),),
            partial=partial,
            x_scale=None if integers is None else integers.scale,
            scale=None if integers is None else weight["scale"],
            bias=bias,
            out=out,
            out_row=out.stride(0),
            size=rows * columns,
            columns=columns,
            parts=parts,
            BLOCK=block,
        )
