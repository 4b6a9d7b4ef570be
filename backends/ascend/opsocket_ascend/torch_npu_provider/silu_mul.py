"""silu_mul by `npu_swiglu`."""

from __future__ import annotations

import torch

from opsocket.operators import SiluMulPlan
from opsocket_ascend.torch_npu_provider import strict


class NpuSiluMul(SiluMulPlan):
    """In f32, rounded once: what the operator rounds of 16-bit rows on its way is not documented.

    It wants gate and up in one row. Halves of a fused projection's rows lie so already; others are copied.
    """

    def _run(self, gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        if not len(gate):
            return torch.empty_like(gate) if out is None else out
        y = strict.swiglu(_joined(gate, up).float().contiguous())
        return y.to(gate.dtype) if out is None else out.copy_(y)


def _joined(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[T, 2 * width]: gate, then up."""
    width, stride = gate.shape[1], gate.stride(0)
    neighbours = (
        gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()
        and up.storage_offset() == gate.storage_offset() + width
        and gate.stride() == up.stride() == (stride, 1)
        and (stride >= 2 * width or len(gate) == 1)
    )
    if neighbours:
        return gate.as_strided((len(gate), 2 * width), (stride, 1))
    return torch.cat([gate, up], 1)
