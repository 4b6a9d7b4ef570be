"""Rows of a table in any weight format."""

from __future__ import annotations

import torch

from opsocket.operators import EmbeddingPlan, PackedWeight
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.matmul.rows import OverWeights, gather


class TritonEmbedding(OverWeights, EmbeddingPlan):
    """Reads the layouts of the matmul: a tied output head's weight is the table."""

    capture_level = "any"

    def _run(self, ids: torch.Tensor, packed: PackedWeight, out: torch.Tensor | None) -> torch.Tensor:
        if out is None:
            out = torch.empty(len(ids), packed.k, dtype=TORCH_DTYPES[self.spec.out_dtype], device=ids.device)
        return gather(packed.content, packed.k, ids, out)
