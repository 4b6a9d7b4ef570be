"""A mixture of experts, but for its products: routing, sorting by expert, weighted sums."""

from __future__ import annotations

from ctypes import c_int32, c_int64, c_void_p

import torch

from opsocket.operators import MoECombinePlan, MoECombineSpec, MoERoutePlan, MoERouteSpec, MoESortPlan, MoESortSpec
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


class MoESortCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("experts", c_int64), ("top_k", c_int64),
        ("chosen", c_void_p), ("tokens", c_void_p), ("offsets", c_void_p), ("slots", c_void_p),
    )  # fmt: skip


class MoECombineCommand(Command):
    _fields_ = (
        ("rows", c_int64), ("width", c_int64), ("top_k", c_int64), ("height", c_int64),
        ("x", c_void_p), ("x_stride", c_int64),
        ("slots", c_void_p), ("weights", c_void_p),
        ("y", c_void_p), ("y_stride", c_int64),
        ("dtype", c_int32),
    )  # fmt: skip


class NativeMoERoute(NativePlan, MoERoutePlan):
    """A partial sort by falling logit and rising index; exponentials of the logits less the largest."""

    _counted = MoERouteCommand
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


class NativeMoESort(NativePlan, MoESortPlan):
    """A counting sort. A number that is no expert's counts as the nearest one's."""

    _counted = MoESortCommand
    _fields = Fields(MoESortCommand, "chosen", "tokens offsets slots")

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, MoESortSpec)
        self._experts, self._top_k = spec.num_experts, spec.top_k

    def _outputs(self, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return experts.new_empty(experts.numel()), experts.new_empty(self._experts + 1), torch.empty_like(experts)

    def _command(self, result: tuple[torch.Tensor, torch.Tensor, torch.Tensor], experts: torch.Tensor) -> bytes:
        rows, offsets, slots = result
        return MoESortCommand.pack(
            Op.MOE_SORT, 1, 0, experts.shape[0], self._experts, self._top_k,
            experts.data_ptr(), rows.data_ptr(), offsets.data_ptr(), slots.data_ptr(),
        )  # fmt: skip


class NativeMoECombine(NativePlan, MoECombinePlan):
    """Sums in the order of a token's choices. A slot that is no row of x gives NaN."""

    _counted = MoECombineCommand
    _fields = Fields(MoECombineCommand, "x slots weights y", "y")

    def _setup(self) -> None:
        super()._setup()
        spec = self.request.spec
        assert isinstance(spec, MoECombineSpec)
        self._width, self._top_k, self._dtype = spec.width, spec.top_k, DTYPES[spec.dtype]

    def _outputs(
        self, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None
    ) -> torch.Tensor:
        return x.new_empty((slots.shape[0], self._width)) if out is None else out

    def _command(
        self, y: torch.Tensor, x: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, out: torch.Tensor | None
    ) -> bytes:
        return MoECombineCommand.pack(
            Op.MOE_COMBINE, 1, 8 * self._top_k * self._threads, slots.shape[0], self._width, self._top_k, x.shape[0],
            x.data_ptr(), x.stride()[0], slots.data_ptr(), weights.data_ptr(), y.data_ptr(), y.stride()[0],
            self._dtype,
        )  # fmt: skip
