"""merge_states in one launch."""

from __future__ import annotations

import torch

from opsocket.operators import MergeStatesPlan, MergeStatesSpec
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_ascend.triton_provider.merge_kernel import merge_heads
from opsocket_ascend.triton_provider.tiles import programs, tile_of
from opsocket_triton.launch import launch


class TritonMergeStates(MergeStatesPlan):
    """In f32. Each part is read once, where torch's operators go through all of them six times."""

    capture_level = "any"

    def _run(
        self, outs: torch.Tensor, lses: torch.Tensor, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MergeStatesSpec)
        parts, rows, heads, dim = outs.shape
        if out is None:
            out = outs.new_empty((rows, heads, dim), dtype=TORCH_DTYPES[spec.out_dtype])
        lse = lses.new_empty((rows, heads))
        tile = tile_of(heads, dim)
        launch(
            merge_heads,
            (programs(self.session, rows * tile.per_row(heads)),),
            outs=outs,
            lses=lses,
            out=out,
            lse=lse,
            parts=parts,
            rows=rows,
            heads=heads,
            part_stride=outs.stride(0),
            row_stride=outs.stride(1),
            lse_part=lses.stride(0),
            lse_row=lses.stride(1),
            out_row=out.stride(0),
            DIM=dim,
            HEADS=tile.heads,
            WIDE=tile.wide,
        )
        return out, lse
