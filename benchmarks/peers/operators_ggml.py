"""ggml's CPU backend, by the libraries that llama-cpp-python compiled: mul_mat and mul_mat_id with q4_0, q4_1 and
K-quant weights (repacked by ggml for this processor where it can), flash attention over f16, q8_0 and q4_0 caches."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from protocol import STREAMED_ROWS, Prepared, arguments, copies, routes, serve_operators

TYPES = {
    "f32": 0,
    "i32": 26,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 8,
    "q2_K": 10,
    "q3_K": 11,
    "q4_K": 12,
    "q5_K": 13,
    "q6_K": 14,
}
BLOCK = {
    "f16": (1, 2), "q4_0": (32, 18), "q4_1": (32, 20), "q8_0": (32, 34),
    "q2_K": (256, 84), "q3_K": (256, 110), "q4_K": (256, 144), "q5_K": (256, 176), "q6_K": (256, 210),
}  # fmt: skip
SCALES_AT = {"q4_1": (0, 2), "q2_K": (80, 82), "q3_K": (108,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,)}
WEIGHTS = ("q4_0", "q4_1", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K")
REPACKED = ("q4_0", "q2_K", "q4_K")
"""By ggml on x86 with AVX-512; tensors of other types can't be put into such a buffer."""

folder = Path(llama_cpp.__file__).parent / "lib"
base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
P = ctypes.c_void_p
MOST_GRAPHS = 512


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", P), ("no_alloc", ctypes.c_bool))


def function(library: ctypes.CDLL, name: str, result: Any, *types: Any) -> Any:
    found = getattr(library, name)
    found.restype, found.argtypes = result, types
    return found


init = function(base, "ggml_init", P, InitParams)
free = function(base, "ggml_free", None, P)
new_4d = function(base, "ggml_new_tensor_4d", P, P, ctypes.c_int, *[ctypes.c_int64] * 4)
mul_mat = function(base, "ggml_mul_mat", P, P, P, P)
mul_mat_id = function(base, "ggml_mul_mat_id", P, P, P, P, P)
flash = function(base, "ggml_flash_attn_ext", P, P, P, P, P, P, ctypes.c_float, ctypes.c_float, ctypes.c_float)
new_graph = function(base, "ggml_new_graph", P, P)
expand = function(base, "ggml_build_forward_expand", None, P, P)
nbytes = function(base, "ggml_nbytes", ctypes.c_size_t, P)
tensor_set = function(base, "ggml_backend_tensor_set", None, P, P, ctypes.c_size_t, ctypes.c_size_t)
alloc = function(base, "ggml_backend_alloc_ctx_tensors", P, P, P)
alloc_from = function(base, "ggml_backend_alloc_ctx_tensors_from_buft", P, P, P)
compute = function(base, "ggml_backend_graph_compute", ctypes.c_int, P, P)
free_buffer = function(base, "ggml_backend_buffer_free", None, P)
cpu_init = function(cpu, "ggml_backend_cpu_init", P)
set_threads = function(cpu, "ggml_backend_cpu_set_n_threads", None, P, ctypes.c_int)
cpu_reg = function(cpu, "ggml_backend_cpu_reg", P)
reg_dev = function(base, "ggml_backend_reg_dev_get", P, P, ctypes.c_size_t)
proc_address = function(base, "ggml_backend_reg_get_proc_address", P, P, ctypes.c_char_p)

args = arguments(__doc__ or "", model=False)
backend = cpu_init()
set_threads(backend, args.threads)
generator = np.random.default_rng(0)
held: list[tuple[Any, Any]] = []  # (context, buffer) of the case before


def repacked_type() -> Any:
    """The buffer type whose tensors ggml rearranges for this processor's kernels; None where it has none."""
    registry = cpu_reg()
    found = proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not found:
        return None
    types = ctypes.cast(found, ctypes.CFUNCTYPE(ctypes.POINTER(P), P))(reg_dev(registry, 0))
    return types[0] if types and types[0] else None


def quantized(kind: str, count: int) -> np.ndarray:
    """Random blocks whose scales are small numbers."""
    elements, size = BLOCK[kind]
    blocks = generator.integers(0, 256, (count // elements, size), np.uint8)
    if kind == "f16":
        return generator.standard_normal(count).astype(np.float16).view(np.uint8)
    scale = (generator.random((len(blocks), 1)) * 0.01).astype(np.float16)
    for at in SCALES_AT.get(kind, (0,)):
        blocks[:, at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(-1)


def prepare(case: dict[str, Any]) -> Prepared | str:
    for context, buffer in held:
        free_buffer(buffer)
        free(context)
    held.clear()
    return {"matmul": matmul, "grouped_matmul": experts, "attention": attention}[case["op"]](case)


def tensors(kinds: list[tuple[str, tuple[int, ...]]], where: Any = None) -> list[Any]:
    """New tensors in a buffer of their own, of the CPU's or of a given type."""
    context = init(InitParams(1 << 20, None, True))
    made = [new_4d(context, TYPES[kind], *shape, *[1] * (4 - len(shape))) for kind, shape in kinds]
    held.append((context, alloc(context, backend) if where is None else alloc_from(context, where)))
    return made


def fill(tensor: Any, data: np.ndarray) -> None:
    data = np.ascontiguousarray(data)
    tensor_set(tensor, data.ctypes.data, 0, data.nbytes)


def graph_of(make: Any) -> Any:
    context = init(InitParams(1 << 20, None, True))
    result = make(context)
    graph = new_graph(context)
    expand(graph, result)
    held.append((context, alloc(context, backend)))
    return graph


def matmul(case: dict[str, Any]) -> Prepared | str:
    kind = case["format"].removesuffix("_a8")
    if kind not in WEIGHTS:
        return "no such kernel"
    m, n, k = case["m"], case["n"], case["k"]
    data = quantized(kind, n * k)
    count = copies(data.nbytes) if m <= STREAMED_ROWS else 2
    if count > MOST_GRAPHS:
        return "too many graphs for weights that together are larger than any cache"
    where = repacked_type() if kind in REPACKED else None
    weights = [tensors([(kind, (k, n))], where)[0] for _ in range(count)]
    for weight in weights:
        fill(weight, data)
    (x,) = tensors([("f32", (k, m))])
    fill(x, generator.standard_normal(m * k).astype(np.float32))
    graphs = [graph_of(lambda context, w=weight: mul_mat(context, w, x)) for weight in weights]
    return Prepared(lambda i: compute(backend, graphs[i]), count, data.nbytes)


def experts(case: dict[str, Any]) -> Prepared | str:
    kind = case["format"].removesuffix("_a8")
    if kind not in WEIGHTS:
        return "no such kernel"
    m, n, k, of, top = case["m"], case["n"], case["k"], case["experts"], case["top"]
    data = quantized(kind, n * k)
    turns, count, touched = routes(case, data.nbytes)
    if len(turns) > MOST_GRAPHS:
        return "too many graphs for weights that together are larger than any cache"
    where = repacked_type() if kind in REPACKED else None
    layers = [tensors([(kind, (k, n, of))], where)[0] for _ in range(count)]
    for layer in layers:
        fill(layer, np.tile(data, of))
    (x,) = tensors([("f32", (k, top, m))])
    fill(x, generator.standard_normal(top * m * k).astype(np.float32))
    graphs = []
    for i, turn in enumerate(turns):
        (ids,) = tensors([("i32", (top, m))])
        fill(ids, np.array(turn, np.int32))
        graphs.append(graph_of(lambda context, w=layers[i % count], ids=ids: mul_mat_id(context, w, x, ids)))
    return Prepared(lambda i: compute(backend, graphs[i]), len(graphs), int(touched * data.nbytes))


def attention(case: dict[str, Any]) -> Prepared | str:
    kind = {"bf16": "f16", "i8": "q8_0", "i4": "q4_0"}.get(case["cache"])
    if kind is None or case["q_len"] != 1 or case["probabilities"] != "f32":
        return "no such kernel, or not measured"
    heads, kv_heads, dim = case["q_heads"], case["kv_heads"], case["head_dim"]
    context, batch = case["context"], case["batch"]
    data = quantized(kind, dim * context * kv_heads * batch)
    count = copies(2 * data.nbytes)
    (q,) = tensors([("f32", (dim, 1, heads, batch))])
    fill(q, generator.standard_normal(dim * heads * batch).astype(np.float32))
    graphs = []
    for _ in range(count):
        k, v = tensors([(kind, (dim, context, kv_heads, batch))] * 2)
        fill(k, data)
        fill(v, data)
        graphs.append(graph_of(lambda c, k=k, v=v: flash(c, q, k, v, None, dim**-0.5, 0.0, 0.0)))
    return Prepared(lambda i: compute(backend, graphs[i]), count, 2 * data.nbytes)


serve_operators("ggml", [f"llama-cpp-python {llama_cpp.__version__}"], prepare)
