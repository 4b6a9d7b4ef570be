"""What the kernels over weights do not do, as reasons. Imports no framework: a "no" must be cheap."""

from __future__ import annotations

from typing import Any, Final

from opsocket.operators import ContractError, GroupedMatmulSpec, MatmulSpec, Reason, Request
from opsocket.quantization import get_format

MAX_INT8_COLUMNS: Final = (2**31 - 1) // (127 * 128)
"""Columns whose products of int8 codes always sum within int32."""


def refusals(request: Request) -> tuple[Reason, ...]:
    """Why a request for a weight's rows or products is not served; empty when it is."""
    spec: Any = request.spec
    fmt = get_format(spec.weight_format)
    try:
        fmt.tensor_specs(spec.n, spec.k)
    except ContractError as error:
        return (Reason("shape", error.argument, error.got, error.want),)
    if not isinstance(spec, MatmulSpec | GroupedMatmulSpec):
        return ()
    reasons = []
    if fmt.activation == "i8_token" and not fmt.block_k and spec.k > MAX_INT8_COLUMNS:
        want = f"at most {MAX_INT8_COLUMNS} for int32 sums of {fmt.id}"
        reasons.append(Reason("shape", "k", spec.k, want))
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    return tuple(reasons)
