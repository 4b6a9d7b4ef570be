"""moe_combine in one launch."""

from __future__ import annotations

import torch

from opsocket.operators import MoECombinePlan, MoECombineSpec
from opsocket_ascend.triton_provider.combine_kernel import combine_tokens
from opsocket_ascend.triton_provider.tiles import programs
from opsocket_triton.launch import launch

_BLOCK = 2048


class TritonMoECombine(MoECombinePlan):
    """In f32, in the order of the choices, rounded once. A row is read once, where torch's operators go through it
    three times. The GPU backends' kernel has a program for each token, and triton-ascend starts 65535 at most."""

    capture_level = "any"

    def _run(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        spec = self.request.spec
        assert isinstance(spec, MoECombineSpec)
        tokens, width = slots.shape[0], spec.width
        out = x.new_empty((tokens, width)) if out is None else out
        block = min(_BLOCK, 1 << (width - 1).bit_length())
        launch(
            combine_tokens,
            (programs(self.session, tokens * -(-width // block)),),
            x=x,
            slots=slots,
            weights=weights,
            out=out,
            tokens=tokens,
            width=width,
            x_row=x.stride(0),
            out_row=out.stride(0),
            TOP_K=spec.top_k,
            BLOCK=block,
        )
        return out
