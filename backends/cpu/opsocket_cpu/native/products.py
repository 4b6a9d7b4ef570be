"""What products of int8 and of float activations share: their arguments, and weights in panels."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from opsocket.operators import GroupedMatmulPlan, MatmulPlan, PackedWeight
from opsocket.operators.identity import ByIdentity
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.native import weights
from opsocket_cpu.native.command import Command
from opsocket_cpu.native.panels import CodedPanels, FloatPanels, Panels, PanelWeight
from opsocket_cpu.native.plan import NativePlan, address


class Together(NamedTuple):
    """What commands know of the weights of one product.

    array: one weight behind the other; points at their memory. in_order: whether all meet the columns of x, and no
    padding, in their order. float_dtype: of weights of floats.
    """

    array: ctypes.Array[PanelWeight]
    in_order: bool
    float_dtype: str | None


class Product(weights.OverPanels, NativePlan):
    """Named before `OneWeight` or `WeightForEach`."""

    def _setup(self) -> None:
        super()._setup()
        self._together: ByIdentity[Together] = ByIdentity()

    def _weights(self, packed: Sequence[PackedWeight]) -> Together:
        found = self._together.get(packed)
        if found is None:
            contents = [weight.content for weight in packed]
            array = (PanelWeight * len(packed))(*map(_panel_weight, contents))
            in_order = all(_meets_x_in_order(content) for content in contents)
            dtype = contents[0].dtype if isinstance(contents[0], FloatPanels) else None
            found = Together(array, in_order, dtype)
            self._together.put(packed, found)
        return found

    @abstractmethod
    def _product(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        offsets: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Command:
        """The command that writes y [M, N] = x [M, K] W^T + bias.

        offsets i64 [E + 1]: rows offsets[e] to offsets[e + 1] meet weight e of E, with bias f32 [E, N]; None: all rows
        meet the only weight, with bias f32 [N].
        """


class OneWeight(Product, MatmulPlan):
    """y = x W^T + bias."""

    def _outputs(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        return torch.empty(len(x), self.spec.n, dtype=TORCH_DTYPES[self.spec.out_dtype]) if out is None else out

    def _command(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> Command:
        return self._product(y, x, (packed,), None, bias)


class WeightForEach(Product, GroupedMatmulPlan):
    """Experts' offsets are read when the kernel runs: a captured run sees what stands there then."""

    def _outputs(
        self,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        return torch.empty(len(x), self.spec.n, dtype=TORCH_DTYPES[self.spec.out_dtype]) if out is None else out

    def _command(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        packed: Sequence[PackedWeight],
        expert_offsets: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None,
    ) -> Command:
        return self._product(y, x, packed, expert_offsets, bias)


def _panel_weight(content: CodedPanels | FloatPanels) -> PanelWeight:
    if isinstance(content, FloatPanels):
        return PanelWeight(Panels(content.data.data_ptr()), None)
    return PanelWeight(content.facts, address(content.permutation))


def _meets_x_in_order(content: CodedPanels | FloatPanels) -> bool:
    return isinstance(content, FloatPanels) or (content.permutation is None and content.facts.k == content.k)
