"""Weight formats as data, canonical weights, packers, and readers of model files.

`QuantFormat` says what a stored weight means (`reference`, float64) and unpacks it for backends (`group`, or
`scale_floats`); `quantize` and `dequantize` go between f32 and a format's tensors; `concatenate` joins the rows of
several weights, `rows_of` takes some of one. The readers live in `gguf_file` and `safetensors_file`, and need the extra
``opsocket[models]``.
"""

from __future__ import annotations

from opsocket.quantization.bfloat16 import bf16_to_f32, f32_to_bf16
from opsocket.quantization.float8 import f8e4m3fn_to_f32, f32_to_f8e4m3fn
from opsocket.quantization.formats import (
    FORMATS,
    QuantFormat,
    WeightTensor,
    get_format,
    with_activation,
    without_activation,
)
from opsocket.quantization.grouped import GroupedWeight, ScaleCodes
from opsocket.quantization.quantize import dequantize, quantize
from opsocket.quantization.rows import concatenate, rows_join, rows_of
from opsocket.quantization.scaled_floats import ScaledFloats

__all__ = [
    "FORMATS",
    "GroupedWeight",
    "QuantFormat",
    "ScaleCodes",
    "ScaledFloats",
    "WeightTensor",
    "bf16_to_f32",
    "concatenate",
    "dequantize",
    "f8e4m3fn_to_f32",
    "f32_to_bf16",
    "f32_to_f8e4m3fn",
    "get_format",
    "quantize",
    "rows_join",
    "rows_of",
    "with_activation",
    "without_activation",
]
