"""OpenVINO's matmul with compressed weights, activations quantized inside by groups of 32."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from protocol import STREAMED_ROWS, Prepared, arguments, copies, serve_operators

MOST_MODELS = 128

args = arguments(__doc__ or "", model=False)
core = ov.Core()
SETTINGS = {"INFERENCE_NUM_THREADS": args.threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32, "PERFORMANCE_HINT": "LATENCY"}


def prepare(case: dict[str, Any]) -> Prepared | str:
    if case["op"] != "matmul" or case["bits"] != 4:
        return "not measured"
    m, n, k, group = case["m"], case["n"], case["k"], case["group"]
    generator = np.random.default_rng(0)
    size = n * k // 2 + n * (k // group) * 2
    count = copies(size) if m <= STREAMED_ROWS else 2
    if count > MOST_MODELS:
        return "too many models for weights that together are larger than any cache"
    requests, kept = [], []
    for _ in range(count):
        # An ov.Tensor over a numpy int4 buffer does not own it.
        kept.append(generator.integers(0, 256, (n * k // 2,), np.uint8))
        tensor = ov.Tensor(kept[-1], [n, k // group, group], ov.Type.u4)
        weight = op.convert(op.constant(tensor, shared_memory=True), "f16")
        zero = op.convert(op.constant(np.full((n, k // group, 1), 8, np.uint8), ov.Type.u4), "f16")
        scale = op.constant(generator.random((n, k // group, 1)).astype(np.float16))
        weight = op.multiply(op.subtract(weight, zero), scale)
        weight = op.convert(op.reshape(weight, op.constant(np.array([n, k], np.int64)), False), "f32")
        x = op.parameter([m, k], np.float32)
        model = ov.Model([op.matmul(x, weight, False, True)], [x])
        requests.append(core.compile_model(model, "CPU", SETTINGS).create_infer_request())
        requests[-1].set_input_tensor(ov.Tensor(generator.standard_normal((m, k)).astype(np.float32)))
    return Prepared(lambda i: requests[i].infer(), count, size)


serve_operators("OpenVINO", [f"openvino {ov.__version__}"], prepare)
