"""Rows of weights: one weight of several that multiply the same activations, their rows one after the other; and some
rows of a weight as one.

Fused projections (q, k and v; gate and up) are read by one matmul, which then gives their outputs side by side.
Backends repack a large weight some rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators.errors import ContractError
from opsocket.quantization.formats import QuantFormat, WeightTensor

Array = npt.NDArray[Any]

_ROWS_AXIS: Final = {"dense": 0, "ggml": 0, "nibble_lo": 0, "gptq_v1": 1, "gptq_v2": 1, "awq": 1}
"""Packing -> the axis of all of its tensors along which rows of the weight lie."""


def rows_join(format: QuantFormat) -> bool:
    """Whether weights of this format can be joined whatever they hold. Not where each has an order of its columns
    (`g_idx`), nor where rows share scales, nor in a packing that opsocket does not know."""
    return format.packing in _ROWS_AXIS and not format.g_idx and format.block_n == 1


def concatenate(weights: Sequence[WeightTensor]) -> WeightTensor:
    """The rows of all weights, in this order, as one weight [sum of n, k]; a copy where there are several.

    Raises ContractError where there is none, or they differ in format or k, or the format's rows do not join.
    """
    if len(weights) == 1:
        return weights[0]
    if len({(weight.format, weight.k) for weight in weights}) != 1:
        got = [(weight.format.id, weight.k) for weight in weights]
        raise ContractError("weights", "at least one, all of one format and one k", got)
    format, k = weights[0].format, weights[0].k
    if not rows_join(format):
        raise ContractError(
            "format",
            "one whose rows join: no g_idx, no scales of several rows, a packing that opsocket knows",
            format.id,
        )
    axis = _ROWS_AXIS[format.packing]
    tensors = {name: np.concatenate([weight.tensors[name] for weight in weights], axis) for name in weights[0].tensors}
    return WeightTensor(format, sum(weight.n for weight in weights), k, tensors)


def rows_of(weight: WeightTensor, first: int, last: int) -> WeightTensor:
    """Rows first to last - 1 of a weight whose rows join, both multiples of 8 (or last is n): views of its tensors.

    Raises ContractError where they are not, or the format's rows do not join.
    """
    if not rows_join(weight.format):
        raise ContractError("weight", "a weight of a format whose rows join", weight.format.id)
    if not 0 <= first < last <= weight.n or first % 8 or (last % 8 and last != weight.n):
        raise ContractError("first, last", f"multiples of 8 in 0..{weight.n}, in order", (first, last))
    axis = _ROWS_AXIS[weight.format.packing]

    def cut(tensor: Array) -> Array:
        per_row = weight.n // tensor.shape[axis]  # rows that a word holds
        some: Array = tensor[(slice(None),) * axis + (slice(first // per_row, last // per_row),)]
        return some

    tensors = {name: cut(tensor) for name, tensor in weight.tensors.items()}
    return WeightTensor(weight.format, last - first, weight.k, tensors)
