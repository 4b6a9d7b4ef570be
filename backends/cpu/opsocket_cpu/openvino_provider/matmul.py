"""MatMul with compressed weights, one compiled model for each weight: it rearranges the weight when it compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op

from opsocket.operators import MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.grouped_codes import SymmetricCodes


@dataclass(frozen=True, eq=False)
class _Weight:
    """request: of the compiled model. kept: its constants, which it does not own."""

    request: Any
    codes: SymmetricCodes
    kept: np.ndarray


class OpenVinoMatmul(MatmulPlan):
    weight_layouts = ("openvino",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec: Any = request.spec
        codes = SymmetricCodes.of(spec, tensors)
        packed = codes.unsigned().reshape(-1)
        settings = {
            "INFERENCE_NUM_THREADS": session.threads,  # type: ignore[attr-defined]
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        compiled = _core().compile_model(_model(spec.n, spec.k, codes, packed), "CPU", settings)
        size = packed.nbytes + codes.scale.nbytes
        content = _Weight(compiled.create_infer_request(), codes, packed)
        return PackedWeight(spec.weight_format, spec.n, spec.k, "openvino", content, size)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        content: _Weight = packed.content
        return content.codes.dequantize()

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        y = torch.empty(len(x), packed.n)
        if len(x):
            request = packed.content.request
            x = x.float().contiguous()  # named: a tensor over its memory does not own it
            request.set_input_tensor(ov.Tensor(x.numpy(), shared_memory=True))
            request.set_output_tensor(ov.Tensor(y.numpy(), shared_memory=True))
            request.infer()
        if bias is not None:
            y += bias
        return y.to(TORCH_DTYPES[self.spec.out_dtype]) if out is None else out.copy_(y)


@lru_cache(maxsize=1)
def _core() -> Any:
    return ov.Core()


def _model(n: int, k: int, codes: SymmetricCodes, packed: np.ndarray) -> Any:
    groups, kind = k // codes.group, ov.Type.u4 if codes.bits == 4 else ov.Type.u8
    stored = op.constant(ov.Tensor(packed, [n, groups, codes.group], kind), shared_memory=True)
    middle = op.constant(np.full((n, groups, 1), 1 << (codes.bits - 1), np.float32))
    centred = op.subtract(op.convert(stored, "f32"), middle)
    weight = op.multiply(centred, op.constant(codes.scale.reshape(n, groups, 1)))
    x = op.parameter([-1, k], np.float32)
    flat = op.reshape(weight, op.constant(np.array([n, k], np.int64)), False)
    return ov.Model([op.matmul(x, flat, False, True)], [x])
