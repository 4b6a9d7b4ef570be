"""Right kernels of other kinds, which the suite must pass: it may not take one way of computing for the only one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from opsocket_conformance.floats import round_to
from opsocket_conformance.power.fault import Fault
from opsocket_conformance.power.plain_attention import Floats, Ints, Row, Stages, plain


class Tiled(Stages):
    """Online softmax over tiles of 37 keys."""

    def parts(self, length: int) -> Sequence[Ints]:
        return [np.arange(first, min(first + 37, length)) for first in range(0, length, 37)]


class Split(Stages):
    """7 parts of the keys, merged at the end."""

    def parts(self, length: int) -> Sequence[Ints]:
        return [part for part in np.array_split(np.arange(length), 7) if len(part)]


class BaseTwo(Stages):
    """Exponentials in base 2, the logarithm of e taken into the exponent."""

    def exp(self, x: Floats) -> Floats:
        result: Floats = np.exp2(x * self.work(np.log2(np.e)))
        return result


class Reordered(Stages):
    """Keys from the last to the first, in parts that take turns."""

    def parts(self, length: int) -> Sequence[Ints]:
        keys = np.arange(length)[::-1]
        return [keys[offset::3] for offset in range(min(3, length))]


class Double(Stages):
    """float64 throughout, but for the output."""

    work: Any = np.float64


class Rounded(Stages):
    """Probabilities in the type that the request's numerics allow, and their sum from before the rounding."""

    def rounded(self, weights: Floats) -> Floats:
        return round_to(weights, self.spec.numerics.probabilities)


class ScaledQuery(Stages):
    """The scale joins the query, in f32, before the product."""

    def scaled(self, row: Row) -> Floats:
        product: Floats = (row.q * self.work(self.spec.scale)) @ row.k.transpose(0, 2, 1)
        return product


VARIANTS: Final = tuple(
    Fault(
        "attention",
        kernel=plain(stages),
        name=name,
        category="control",
        wrong="Nothing: a right kernel of another kind.",
    )
    for name, stages in (
        ("plain NumPy", Stages),
        ("tiles of 37 keys", Tiled),
        ("7 KV splits, merged", Split),
        ("base-2 exponentials", BaseTwo),
        ("keys in another order", Reordered),
        ("float64 throughout", Double),
        ("probabilities as declared", Rounded),
        ("query scaled first", ScaledQuery),
    )
)
"""What the suite must not find anything wrong with."""
