"""Rows of a table in any weight format, widened after they are gathered."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from opsocket.operators import EmbeddingPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.torch_provider import weights


class TorchEmbedding(EmbeddingPlan):
    """Only the rows asked for are dequantized. Reads the layouts of the matmul: tied tables need one copy."""

    weight_layouts = weights.LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weights.prepare(session, request.spec, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return weights.dequantize(packed)

    def _run(self, ids: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None) -> torch.Tensor:
        rows = weights.take(packed, ids)
        return rows.to(TORCH_DTYPES[self.spec.out_dtype]) if out is None else out.copy_(rows)
