"""A model's weights from a Hugging Face folder of safetensors, by canonical names."""

from __future__ import annotations

import re

import numpy as np

from opsocket.operators.errors import FormatError
from opsocket.quantization import WeightTensor
from opsocket.quantization.safetensors_file import open_safetensors
from opsocket_engine.canonical import check_name, matrix_shapes, vector_lengths
from opsocket_engine.huggingface.config import config_from_huggingface
from opsocket_engine.huggingface.quantization import Dense, StoredMatrix, floats, read_scheme
from opsocket_engine.keys import Keys
from opsocket_engine.locate import HuggingFaceFolder

_TOP = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
_EXPERTS = {"router": "mlp.gate", "gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_MIXTRAL = {"router": "block_sparse_moe.gate", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_CANONICAL = re.compile(r"layers\.(\d+)\.(?:experts\.(\d+)\.)?(\w+?)(_bias)?")


def module_name(name: str, model_type: str = "") -> str:
    """The module that holds the tensor which is canonically called `name`. model_type: of config.json."""
    if name in _TOP:
        return _TOP[name]
    match = _CANONICAL.fullmatch(name)
    assert match is not None
    layer, expert, matrix, _ = match.groups()
    mixture = _MIXTRAL if model_type == "mixtral" else _EXPERTS
    if expert is not None:
        return f"model.layers.{layer}.{mixture['router'].removesuffix('gate')}experts.{expert}.{mixture[matrix]}"
    return f"model.layers.{layer}.{(mixture if matrix == 'router' else _LAYER)[matrix]}"


def _vector_name(name: str) -> str:
    return f"{module_name(name)}.{'bias' if name.endswith('_bias') else 'weight'}"


class HuggingFaceCheckpoint:
    """Implements `Checkpoint`. On opening, every tensor is checked to be there in the right shape, and none besides."""

    def __init__(self, files: HuggingFaceFolder) -> None:
        config = files.json("config.json")
        self.config = config_from_huggingface(files.path, config, files.json("generation_config.json"))
        self._source = open_safetensors(files.path)
        names = frozenset(self._source.names())
        scheme = read_scheme(Keys(files.path / "config.json", config))
        self._matrices: dict[str, StoredMatrix] = {}
        for name, (n, k) in matrix_shapes(self.config).items():
            module = module_name(name, config["model_type"])
            quantized = None if scheme is None else scheme.stored(self._source, names, module, n, k)
            self._matrices[name] = quantized or Dense().stored(self._source, names, module, n, k)
            self._matrices[name].check(self._source, names)
        self._vectors = vector_lengths(self.config)
        for name, length in self._vectors.items():
            self._check_vector(_vector_name(name), length, names)
        self._check_unused(names)

    def has(self, name: str) -> bool:
        return name in self._matrices or name in self._vectors

    def weight(self, name: str) -> WeightTensor:
        if name == "lm_head" and self.config.tie_embeddings:
            name = "embed_tokens"
        check_name(name, self._matrices, "matrices")
        return self._matrices[name].read(self._source)

    def vector(self, name: str) -> np.ndarray:
        check_name(name, self._vectors, "vectors")
        return floats(self._source, _vector_name(name))

    def _check_vector(self, name: str, length: int, names: frozenset[str]) -> None:
        if name not in names:
            raise FormatError(self._source.path, name, f"no such tensor; wanted floats[{length}]")
        shape, dtype = self._source.shape(name), self._source.dtype(name)
        if shape != (length,) or dtype not in ("f32", "f16", "bf16"):
            raise FormatError(self._source.path, name, f"wanted floats[{length}], got {dtype}{list(shape)}")

    def _check_unused(self, names: frozenset[str]) -> None:
        used = {_vector_name(name) for name in self._vectors}
        for stored in self._matrices.values():
            used.update(stored.parts.values())
        for name in sorted(names - used):
            if not self._means_nothing(name, names):
                problem = f"a tensor that a {self.config.architecture} model of this configuration has no use for"
                raise FormatError(self._source.path, name, problem)

    def _means_nothing(self, name: str, names: frozenset[str]) -> bool:
        """Whether a model computes the same without this tensor."""
        if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and self.config.tie_embeddings):
            return True
        if name.endswith(".g_idx"):
            # Checked where it was found to say no more than k // group.
            return name.removesuffix("g_idx") + "qweight" in names
        if name.endswith(".input_scale"):
            # Of activations that were to be rounded to 8-bit floats, and are not.
            weight = name.removesuffix("input_scale") + "weight"
            return weight in names and self._source.dtype(weight) == "f8e4m3fn"
        # AutoGPTQ once wrote a bias beside every matrix, all zeros where the model has none.
        is_float = self._source.dtype(name) in ("f32", "f16", "bf16")
        return name.endswith("_proj.bias") and is_float and not floats(self._source, name).any()
