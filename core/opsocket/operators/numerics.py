"""What an implementation may do inside: a closed set, part of the request, from which the tolerance follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Numerics:
    """probabilities: the type that softmax probabilities are rounded to before they meet V.

    exp, tanh: "exact" within 2 units in the last place of f32; "approx" within 2^-12 relative (hardware units).
    accumulate: the type of running sums in matrix products.
    """

    probabilities: Literal["f32", "f16", "bf16"] = "f32"
    exp: Literal["exact", "approx"] = "exact"
    tanh: Literal["exact", "approx"] = "exact"
    accumulate: Literal["f32", "f64"] = "f32"


DEFAULT_NUMERICS = Numerics()
