"""The ggml formats against the dequantization of the `gguf` package, which is ggml's own."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from opsocket.quantization import FORMATS, dequantize, quantize

GGML = [format for format in FORMATS if format.packing == "ggml"]


def by_gguf(format, blocks):
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[format.base.id.upper()])


@pytest.mark.parametrize("format", GGML, ids=lambda format: format.id)
@pytest.mark.parametrize("seed", range(3))
def test_random_block_bytes(format, seed, random_tensors):
    n, k = 13, 1024
    tensors = random_tensors(format, n, k, np.random.default_rng(seed))
    expected = by_gguf(format, tensors["blocks"])
    np.testing.assert_array_max_ulp(format.reference(tensors, n, k).astype(np.float32), expected, maxulp=1)
    np.testing.assert_array_max_ulp(dequantize(format, tensors, n, k), expected, maxulp=1)


@pytest.mark.parametrize("format", GGML, ids=lambda format: format.id)
def test_packed_weights(format):
    weight = np.random.default_rng(7).standard_normal((24, 768)).astype(np.float32) * 0.04
    tensors = quantize(format, weight)
    expected = by_gguf(format, tensors["blocks"])
    np.testing.assert_array_max_ulp(dequantize(format, tensors, 24, 768), expected, maxulp=1)
    # The packed bytes mean the weight to ggml too: a misplaced field would leave no correlation.
    least = 0.99 if format.code == "e2m1" else {2: 0.9, 3: 0.98, 4: 0.995, 5: 0.999}.get(format.bits, 0.9995)
    assert np.corrcoef(expected.ravel(), weight.ravel())[0, 1] > least


@pytest.mark.parametrize(
    "format", [f for f in GGML if f.id in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4")], ids=lambda f: f.id
)
def test_bytes_packed_by_gguf(format):
    weight = np.random.default_rng(8).standard_normal((5, 320)).astype(np.float32)
    blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[format.base.id.upper()])
    np.testing.assert_array_max_ulp(dequantize(format, {"blocks": blocks}, 5, 320), by_gguf(format, blocks), maxulp=1)
