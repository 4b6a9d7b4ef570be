"""Products with dense weights by cuBLAS or hipBLASLt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch

from opsocket.operators import MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.matmul import weights
from opsocket_triton.workspace import Workspace

_SWITCHES: Final = (
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


class VendorMatmul(MatmulPlan):
    """One product of the vendor's, summed in f32. A bias is added before the one rounding: where the output is narrower
    than f32, to the product in f32, which costs 8 bytes more for each output.

    Bytes and operations are the product's own, and so is what limits it.
    """

    capture_level = "any"
    weight_layouts = ("dense",)

    def _setup(self) -> None:
        self._workspace = Workspace(self)
        rows, spec = self.request.bounds.max_tokens, self.spec
        if rows is not None and spec.bias and spec.out_dtype != "f32":
            self._workspace.take("product", (rows, spec.n), torch.float32)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weights.prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        content: weights.DenseWeight = packed.content
        return content.weight[:, : packed.k].float().contiguous()

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(len(x), packed.n, dtype=TORCH_DTYPES[self.spec.out_dtype], device=x.device)
        if len(x) == 0:
            return out
        weight = packed.content.weight[:, : packed.k].t()
        if bias is None or out.dtype == torch.float32:
            product(x, weight, out)
            return out if bias is None else out.add_(bias)
        made = self._workspace.take("product", out.shape, torch.float32)
        product(x, weight, made)
        return torch.add(made, bias, out=out)


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """x [M, K] weight [K, N] into out, which has their type or f32; all sums are f32's."""
    with f32_sums():
        if out.dtype == x.dtype:
            torch.mm(x, weight, out=out)
        else:
            torch.mm(x, weight, out.dtype, out=out)


@contextlib.contextmanager
def f32_sums() -> Iterator[None]:
    """No factor is cut down to TF32, and no sum to 16 bits, whatever the process has set for itself."""
    switches: Any = torch.backends.cuda.matmul
    changed = {name: True for name in _SWITCHES if getattr(switches, name, False)}
    # Of the two ways to ask for TF32, reading the old one may raise where the process has used the new one.
    given = getattr(switches, "fp32_precision", None)
    tf32: dict[str, Any] = {"fp32_precision": given} if given not in (None, "ieee", "none") else {}
    if given is None and switches.allow_tf32:
        tf32 = {"allow_tf32": True}
    try:
        for name in (*changed, *tf32):
            setattr(switches, name, "ieee" if name == "fp32_precision" else False)
        yield
    finally:
        for name, value in (changed | tf32).items():
            setattr(switches, name, value)
