"""A dense GGUF model of the llama architecture as a mixture of experts that says the same (Komatsuzaki et al. 2022,
"Sparse Upcycling").

    .venv/bin/python benchmarks/mixture.py smollm2 MIXTURE.gguf [--experts 16] [--top-k 4]
    .venv/bin/python benchmarks/whole_model.py --model MIXTURE.gguf

Each expert is the layer's MLP with its inner channels in an order of its own, so that each computes what the MLP does,
with a share of a weight that sums to 1: whatever the router, which is random, the model's text is the dense model's.
But a gate, an up and a down projection of different experts are in different orders, and make nonsense together.
Weights are permuted as they are stored, block by block: nothing is quantized again.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensor = tuple[str, np.ndarray, gguf.GGMLQuantizationType]


def rewrite(
    source: Path, target: Path, of_tensor: Callable[[Any], Iterable[Tensor]], more: Mapping[str, int] | None = None
) -> None:
    """Copy a GGUF file, whole or not at all. of_tensor: what stands in place of each tensor of `gguf.GGUFReader`'s.
    more: metadata of u32 beside the file's own."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    partial = target.with_suffix(f".{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    try:
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
                sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type)
        for name, value in (more or {}).items():
            writer.add_uint32(f"{architecture}.{name}", value)
        for tensor in reader.tensors:
            for name, data, kind in of_tensor(tensor):
                writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def write_mixture(source: Path, target: Path, num_experts: int, top_k: int, seed: int = 0) -> None:
    """Write the model of `source` with `num_experts` experts in each layer, of which each token meets `top_k`.

    ValueError where the file is no dense llama, or top_k is none of 1 to num_experts.
    """
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k: 1 to {num_experts}, not {top_k}")
    reader = gguf.GGUFReader(source)
    shapes = {tensor.name: tensor for tensor in reader.tensors}
    if reader.fields[gguf.Keys.General.ARCHITECTURE].contents() != "llama" or "blk.0.ffn_down.weight" not in shapes:
        raise ValueError(f"source: a dense model of the llama architecture, not {source}")
    hidden = int(shapes["blk.0.ffn_norm.weight"].shape[0])
    rng = np.random.default_rng(seed)
    orders: dict[str, np.ndarray] = {}

    def order_of(layer: str, intermediate: int, block: int) -> np.ndarray:
        """[num_experts, blocks] of the inner channels: the same for all three projections of an expert."""
        if layer not in orders:
            orders[layer] = np.stack([rng.permutation(intermediate // block) for _ in range(num_experts)])
        return orders[layer]

    def of_tensor(tensor: Any) -> Iterable[Tensor]:
        layer, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if rest not in ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"):
            yield tensor.name, tensor.data, tensor.tensor_type
            return
        down = shapes[f"blk.{layer}.ffn_down.weight"]
        intermediate = int(down.shape[0])
        block = math.lcm(32, gguf.GGML_QUANT_SIZES[down.tensor_type][0])
        order = order_of(layer, intermediate, block)
        name = tensor.name.replace(".weight", "_exps.weight")
        if rest == "ffn_down.weight":
            blocks = tensor.data.reshape(hidden, intermediate // block, -1)
            data = np.stack([blocks[:, channels] for channels in order]).reshape(num_experts, hidden, -1)
            # The router's logits differ by about 2: neither one expert for all nor all alike.
            router = rng.standard_normal((num_experts, hidden), np.float32) * (2 * hidden**-0.5)
            yield f"blk.{layer}.ffn_gate_inp.weight", router, gguf.GGMLQuantizationType.F32
        else:
            blocks = tensor.data.reshape(intermediate // block, block, -1)
            data = np.stack([blocks[channels] for channels in order]).reshape(num_experts, intermediate, -1)
        yield name, data, tensor.tensor_type

    rewrite(source, target, of_tensor, {"expert_count": num_experts, "expert_used_count": top_k})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a dense GGUF file of the llama architecture, or the name of one")
    parser.add_argument("target", type=Path, help="the file to write")
    parser.add_argument("--experts", type=int, default=16, help="in each layer; default: %(default)s")
    parser.add_argument("--top-k", type=int, default=4, help="that each token meets; default: %(default)s")
    args = parser.parse_args()

    from opsocket_engine.locate import GGUFModel, locate

    files = locate(args.model)
    if not isinstance(files, GGUFModel):
        parser.error(f"model: a GGUF file, or a name of one, not {args.model}")
    try:
        write_mixture(files.path, args.target, args.experts, args.top_k)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
