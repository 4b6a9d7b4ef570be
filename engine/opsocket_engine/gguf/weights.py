"""A model's weights from one GGUF file, by canonical names."""

from __future__ import annotations

import re

import numpy as np

from opsocket.operators.errors import FormatError
from opsocket.quantization import WeightTensor
from opsocket_engine.canonical import check_name, matrix_shapes, vector_lengths
from opsocket_engine.gguf.config import config_from_gguf
from opsocket_engine.locate import GGUFModel

_TOP = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}
_LAYER = {
    "attn_norm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "router": "ffn_gate_inp",
}
_CANONICAL = re.compile(r"layers\.(\d+)\.(?:experts\.(\d+)\.)?(\w+?)(_bias)?")


def gguf_name(name: str) -> str:
    """The file's name of the tensor that is canonically called `name`, or that has it among those of other experts."""
    return _found(name)[0]


def _found(name: str) -> tuple[str, int | None]:
    """The tensor, and which expert's part of it: None for all of it."""
    if name in _TOP:
        return _TOP[name], None
    match = _CANONICAL.fullmatch(name)
    assert match is not None
    layer, expert, matrix, bias = match.groups()
    experts = "" if expert is None else "_exps"
    tensor = f"blk.{layer}.{_LAYER[matrix]}{experts}.{'bias' if bias else 'weight'}"
    return tensor, None if expert is None else int(expert)


class GGUFCheckpoint:
    """Implements `Checkpoint`. On opening, every tensor is checked to be there in the right shape, and none besides.

    Rows of q_proj and k_proj are as the file has them; `config.rope.interleaved` says in which order that is.
    """

    def __init__(self, files: GGUFModel) -> None:
        self._tensors = files.file.tensors
        self.config = config_from_gguf(files.path, files.file.metadata, self._tensors)
        self._matrices = matrix_shapes(self.config)
        self._vectors = vector_lengths(self.config)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._matrices.items():
            file_name, expert = _found(name)
            experts = self.config.experts
            shapes[file_name] = shape if expert is None or experts is None else (experts.num_experts, *shape)
        shapes |= {gguf_name(name): (length,) for name, length in self._vectors.items()}
        for file_name, shape in shapes.items():
            if file_name not in self._tensors:
                raise FormatError(files.path, file_name, f"no such tensor; wanted shape {shape}")
            if tuple(self._tensors[file_name].shape) != shape:
                got = tuple(self._tensors[file_name].shape)
                raise FormatError(files.path, file_name, f"wanted shape {shape}, got {got}")
        for name, length in self._vectors.items():
            if not self._tensors[gguf_name(name)].format.is_float:
                raise FormatError(files.path, gguf_name(name), f"wanted floats[{length}], got a quantized tensor")
        for file_name in self._tensors:
            # config_from_gguf has taken rope_freqs in.
            if file_name not in shapes and file_name != "rope_freqs.weight":
                problem = f"a tensor that a {self.config.architecture} model of this configuration has no use for"
                raise FormatError(files.path, file_name, problem)

    def has(self, name: str) -> bool:
        return name in self._matrices or name in self._vectors

    def weight(self, name: str) -> WeightTensor:
        if name == "lm_head" and self.config.tie_embeddings:
            name = "embed_tokens"
        check_name(name, self._matrices, "matrices")
        file_name, expert = _found(name)
        return self._tensors[file_name].weight(expert)

    def vector(self, name: str) -> np.ndarray:
        check_name(name, self._vectors, "vectors")
        return np.ascontiguousarray(self._tensors[gguf_name(name)].array(), dtype=np.float32)
