"""Products with a weight and what belongs to them: the weights themselves, tables of rows, the activation quantizer."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case
from opsocket_conformance.operators.matmul import dequantize, embedding, grouped_matmul, matmul, quantize_activation


def cases() -> Iterator[Case]:
    for operator in (matmul, grouped_matmul, embedding, dequantize, quantize_activation):
        yield from operator.cases()
