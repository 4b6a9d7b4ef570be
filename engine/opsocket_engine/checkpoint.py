"""Opening a model's weights, whatever file format they are in."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from opsocket.quantization import WeightTensor
from opsocket_engine.config import ModelConfig
from opsocket_engine.gguf.weights import GGUFCheckpoint
from opsocket_engine.huggingface.weights import HuggingFaceCheckpoint
from opsocket_engine.locate import GGUFModel, ModelFiles


class Checkpoint(Protocol):
    """A model's configuration and weights, by the names that `opsocket_engine.canonical` lists."""

    config: ModelConfig

    def has(self, name: str) -> bool:
        """Whether the model has a matrix or vector of its own by that name; False for lm_head with tied embeddings."""

    def weight(self, name: str) -> WeightTensor:
        """The matrix, still in its file's format. lm_head with tied embeddings is embed_tokens.

        ContractError where the model has none of that name. Nothing is kept: reading twice reads twice.
        """

    def vector(self, name: str) -> np.ndarray:
        """The norm weight or bias, f32. ContractError where the model has none of that name."""


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Read the configuration and check every tensor's name, shape and format; weights themselves are read on demand.

    FormatError names the file and the key or tensor in it that is missing, unsupported or inconsistent.
    """
    return GGUFCheckpoint(files) if isinstance(files, GGUFModel) else HuggingFaceCheckpoint(files)
