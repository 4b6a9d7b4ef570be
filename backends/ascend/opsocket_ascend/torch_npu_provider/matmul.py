"""Products with the vendor's operators: 16-bit matrices, and W8A8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from opsocket.operators import MatmulPlan, MatmulSpec, PackedWeight, QuantizeActivationPlan, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES, storage_bytes
from opsocket_ascend.torch_npu_provider import strict, tiles
from opsocket_ascend.torch_provider import matmul as general

TILED_CODES: Final = "tiles-codes"


class NpuQuantizeActivation(QuantizeActivationPlan):
    """By `npu_dynamic_quant`."""

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(x):
            return torch.empty_like(x, dtype=torch.int8), x.new_empty(0, dtype=torch.float32)
        return strict.dynamic_quant(x.contiguous())


class NpuMatmul(MatmulPlan):
    """x W^T of 16-bit matrices, W^T in tiles where the chip's product reads them. Reads the layout of provider torch as
    well, whose embedding has the same table.

    A bias, in f32, has to be added before the sum is rounded: `npu_grouped_matmul` does that, of one group.
    """

    weight_layouts = (tiles.LAYOUT, "dense")

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec = request.spec
        assert isinstance(spec, MatmulSpec)
        product = "npu_grouped_matmul" if spec.bias else "matmul"
        return tiles.packed(product, session, general.prepare(session, request, tensors))

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return general.widened(tiles.unpacked(packed), slice(None))

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if not len(x):
            product = x.new_empty(0, self.spec.n)
        elif bias is None and packed.layout == tiles.LAYOUT:
            product = strict.tiled_matmul(x.contiguous(), packed.content)
        elif bias is None:
            product = x @ packed.content.t()
        else:
            end = torch.full((1,), len(x), dtype=torch.int64, device=x.device)
            product = strict.grouped_matmul(x.contiguous(), [tiles.by_column(packed)], end, x.dtype, bias=[bias])
        return product if out is None else out.copy_(product)


class NpuMatmulW8A8(MatmulPlan):
    """`npu_dynamic_quant` of each row, then `npu_quant_matmul` with both scales and the bias in f32, rounded once. The
    codes are in tiles [K, N] where the chip's operator reads them, else [N, K] as they came."""

    weight_layouts = (TILED_CODES, "codes")

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        packed, spec = general.prepare(session, request, tensors), request.spec
        assert isinstance(spec, MatmulSpec)
        if not tiles.are_read("npu_quant_matmul", session, spec.k, spec.n):
            return packed
        content = replace(packed.content, codes=tiles.tiled(packed.content.codes.t()))
        taken = tiles.storage_bytes(content.codes) + storage_bytes(content.scale)
        return PackedWeight(packed.weight_format, packed.n, packed.k, TILED_CODES, content, taken)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        if packed.layout == TILED_CODES:
            codes = tiles.plain(packed.content.codes).t().contiguous()
            packed = replace(packed, layout="codes", content=replace(packed.content, codes=codes))
        return general.widened(packed, slice(None))

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec, content = self.spec, packed.content
        dtype = TORCH_DTYPES[spec.out_dtype]
        if not len(x):
            product = x.new_empty(0, spec.n, dtype=dtype)
        else:
            codes, per_token = strict.dynamic_quant(x.contiguous())
            weight = content.codes if packed.layout == TILED_CODES else content.codes.t()
            product = strict.quant_matmul(codes, weight, content.scale.view(-1), per_token, bias, dtype)
        return product if out is None else out.copy_(product)
