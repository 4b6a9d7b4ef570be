"""What an implementation may do inside: a closed set, part of the request, from which the tolerance follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from opsocket.operators.errors import ContractError


@dataclass(frozen=True)
class Numerics:
    """probabilities: the type that softmax probabilities are rounded to before they meet V.

    exp, tanh: "exact" within 2 units in the last place of f32; "approx" within 2^-12 relative (hardware units).
    accumulate: the running sums of matrix products. "f32", "f64": rounded to nearest. "f32_truncating": f32 sums of
    matrix units that cut off instead of rounding; a step adds up to accumulate_step products to the sum, so that n
    products take ceil(n / accumulate_step) chained steps, each of which may lose 2u of what is summed (Fasi, Higham,
    Mikaitis and Pranesh 2021). Each of them permits: a sum in f32 or f64 serves a request for "f32_truncating".
    dequantized: the type that weights, or keys and values of a quantized cache, are rounded to once dequantized and
    before they are multiplied. Codes stay as their format has them, and scales but for the next field.
    sinks: the type that sink logits are rounded to before they join a softmax's denominator.
    scales: the type that a weight's scales are rounded to before they meet the codes: one for each group, row or block,
    super-block scales multiplied in; and so the minimums, where a format stores these. Neither activations' scales nor
    a cache's.
    """

    probabilities: Literal["f32", "f16", "bf16"] = "f32"
    exp: Literal["exact", "approx"] = "exact"
    tanh: Literal["exact", "approx"] = "exact"
    accumulate: Literal["f32", "f64", "f32_truncating"] = "f32"
    accumulate_step: int = 1
    dequantized: Literal["f32", "f16", "bf16"] = "f32"
    sinks: Literal["f32", "f16", "bf16"] = "f32"
    scales: Literal["f32", "f16", "bf16"] = "f32"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ContractError(f"numerics.{name}", f"one of {list(allowed)}", repr(getattr(self, name)))
        if self.accumulate_step < 1:
            raise ContractError("numerics.accumulate_step", "at least 1", self.accumulate_step)
        if self.accumulate_step > 1 and self.accumulate != "f32_truncating":
            raise ContractError(
                "numerics.accumulate_step", f"1 with accumulate {self.accumulate!r}", self.accumulate_step
            )


def _choices() -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(Numerics)
    return {name: get_args(hint) for name, hint in hints.items() if get_args(hint)}


_CHOICES = _choices()
DEFAULT_NUMERICS = Numerics()
