"""ONNX Runtime's MatMulNBits, with int8 activations inside (accuracy level 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from protocol import STREAMED_ROWS, Prepared, arguments, copies, serve_operators

MOST_SESSIONS = 128

args = arguments(__doc__ or "", model=False)
onnxruntime.set_global_thread_pool_sizes(args.threads, 1)


def prepare(case: dict[str, Any]) -> Prepared | str:
    if case["op"] != "matmul" or case["bits"] != 4:
        return "not measured"
    m, n, k, group = case["m"], case["n"], case["k"], case["group"]
    generator = np.random.default_rng(0)
    tensors = {
        "b": generator.integers(0, 256, (n, k // group, group // 2), np.uint8),
        "scales": generator.random((n * (k // group),), np.float32),
    }
    if case["minimums"]:
        tensors["zeros"] = generator.integers(0, 256, (n * -(-(k // group) // 2),), np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *tensors],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=4,
        block_size=group,
        accuracy_level=4,
    )
    graph = helper.make_graph(
        [node],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False  # or every session's threads spin while the others' work
    size = n * k // 2 + n * (k // group) * 4
    count = copies(size) if m <= STREAMED_ROWS else 2
    if count > MOST_SESSIONS:
        return "too many sessions for weights that together are larger than any cache"
    sessions = [onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"]) for _ in range(count)]
    x = {"x": generator.standard_normal((m, k), np.float32)}
    return Prepared(lambda i: sessions[i].run(None, x), count, size)


serve_operators("ONNX Runtime", [f"onnxruntime {onnxruntime.__version__}"], prepare)
