"""Matrix products with weights in any format."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from opsocket.operators import MatmulPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket.quantization import get_format
from opsocket.quantization.formats import ACTIVATION_GROUP
from opsocket_triton.launch import launch
from opsocket_triton.matmul import tiles, weights
from opsocket_triton.matmul.activation import Quantized, permute, quantize, room
from opsocket_triton.matmul.operands import backend_of, compute_units, operand_of
from opsocket_triton.matmul.products import add_parts, product_codes, product_rows, product_tiles
from opsocket_triton.matmul.rows import OverWeights
from opsocket_triton.workspace import Workspace

_MOST_SPLIT_ROWS: Final = 64
"""More rows give enough tiles by themselves, and partial sums of more would cost more than they save."""


class TritonMatmul(OverWeights, MatmulPlan):
    """Few rows of floats by `product_rows`, more by `product_tiles`, int8 activations by `product_codes`; K in parts
    where the columns are too few for the device."""

    capture_level = "any"

    def _setup(self) -> None:
        self._backend = backend_of(self.session.device)
        self._units = compute_units(self.session)
        self._workspace = Workspace(self)
        activation = get_format(self.spec.weight_format).activation
        self._is_quantized = activation != "none"
        self._x_group = ACTIVATION_GROUP if activation == "i8_g32" else 0

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

    def _floats(self, x: torch.Tensor, content: weights.Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        rows = len(x)
        operand = operand_of(self.session.device, self.spec, content)
        given: dict[str, Any] = {"x": x, "x_row": x.stride(0), "k": self.spec.k}
        if rows <= tiles.vector_rows(self._backend, operand):
            tile = tiles.vector_tile(rows)
            self._multiply(product_rows, tile, content, bias, out, ROWS=tile.rows, **given)
        else:
            tile = tiles.float_tile(self._backend, operand, rows)
            self._multiply(product_tiles, tile, content, bias, out, BM=tile.rows, OPERAND=operand, **given)

    def _codes(
        self, x: torch.Tensor, content: weights.FieldWeight, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        rows, piece = len(x), tiles.piece(content.bits, content.group, self._x_group)
        width = content.width * (8 // content.bits)
        has_sums = content.minimum is not None
        into = room(self._workspace, rows, width, self._x_group, piece, has_sums)
        found = quantize(x, content.permutation, into, self._x_group, piece, self._units)
        tile = tiles.code_tile(rows, content.bits, piece)
        self._multiply(
            product_codes,
            tile,
            content,
            bias,
            out,
            found if piece == 0 else None,
            codes=found.codes,
            x_scale=found.scale,
            x_sums=found.sums,
            codes_row=width,
            X_GROUP=self._x_group,
            PIECE=piece,
            BM=tile.rows,
        )

    def _multiply(
        self,
        kernel: Any,
        tile: tiles.Tile,
        content: weights.Weight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        integers: Quantized | None = None,
        **given: Any,
    ) -> None:
        """Start a kernel, over all of K or in parts that are added up. integers: the rows of x, where its partial sums
        are integers."""
        rows, columns = out.shape
        count = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
        part = tiles.part(content.width, tile.depth, count, self._units if rows <= _MOST_SPLIT_ROWS else 0)
        parts = triton.cdiv(content.width, part)
        dtype = torch.float32 if integers is None else torch.int32
        partial = self._workspace.take("partial", (parts, rows, columns), dtype) if parts > 1 else None
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
