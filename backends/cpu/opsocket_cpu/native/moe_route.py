"""Routing of tokens to experts."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import MoERoutePlan, MoERouteSpec
from opsocket_cpu.native.command import DTYPES, Command, Op
from opsocket_cpu.native.plan import NativePlan
from opsocket_cpu.native.repeat import Fields


class MoERouteCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("experts", c_int64), ("top_k", c_int64),
        ("logits", c_void_p), ("logits_stride", c_int64),
        ("weights", c_void_p), ("chosen", c_void_p),
        ("renormalize", c_int32), ("dtype", c_int32),
    )  # fmt: skip


class NativeMoERoute(NativePlan, MoERoutePlan):
    """A partial sort by falling logit and rising index; exponentials of the logits less the largest."""

    _fields = Fields(MoERouteCommand, "logits", "weights chosen")

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, MoERouteSpec)
        self._experts, self._top_k = spec.num_experts, spec.top_k
        self._how = (int(spec.renormalize), DTYPES[spec.dtype])

    def _outputs(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (logits.shape[0], self._top_k)
        return torch.empty(shape), torch.empty(shape, dtype=torch.int64)

    def _command(self, result: tuple[torch.Tensor, torch.Tensor], logits: torch.Tensor) -> bytes:
        weights, experts = result
        return MoERouteCommand.pack(
            Op.MOE_ROUTE, 1, 8 * self._experts * self._threads, logits.shape[0], self._experts, self._top_k,
            logits.data_ptr(), logits.stride()[0], weights.data_ptr(), experts.data_ptr(), *self._how,
        )  # fmt: skip
