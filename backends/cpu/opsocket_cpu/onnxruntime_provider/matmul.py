"""MatMulNBits, one session for each weight: it rearranges the weight for its kernels when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from opsocket.operators import MatmulPlan, PackedWeight, Request, Session
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cpu.grouped_codes import SymmetricCodes

_IN_F32 = 1
"""accuracy_level."""


@dataclass(frozen=True, eq=False)
class _Weight:
    session: Any
    codes: SymmetricCodes


class OnnxRuntimeMatmul(MatmulPlan):
    weight_layouts = ("onnxruntime",)

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        spec: Any = request.spec
        codes = SymmetricCodes.of(spec, tensors)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = session.threads  # type: ignore[attr-defined]
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = _model(spec.n, spec.k, codes)
        made = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
        size = codes.codes.size * codes.bits // 8 + codes.scale.nbytes
        return PackedWeight(spec.weight_format, spec.n, spec.k, "onnxruntime", _Weight(made, codes), size)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        content: _Weight = packed.content
        return content.codes.dequantize()

    def _run(
        self, x: torch.Tensor, packed: PackedWeight, bias: torch.Tensor | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        y = torch.empty(len(x), packed.n)
        if len(x):
            x = x.float().contiguous()
            binding = packed.content.session.io_binding()
            binding.bind_input("x", "cpu", 0, np.float32, tuple(x.shape), x.data_ptr())
            binding.bind_output("y", "cpu", 0, np.float32, tuple(y.shape), y.data_ptr())
            packed.content.session.run_with_iobinding(binding)
        if bias is not None:
            y += bias
        return y.to(TORCH_DTYPES[self.spec.out_dtype]) if out is None else out.copy_(y)


def _model(n: int, k: int, codes: SymmetricCodes) -> bytes:
    tensors = {"codes": codes.unsigned(), "scales": codes.scale.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft",
        K=k, N=n, bits=codes.bits, block_size=codes.group, accuracy_level=_IN_F32,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", n])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized
