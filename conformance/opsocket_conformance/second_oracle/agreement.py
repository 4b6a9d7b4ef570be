"""The second oracle held against the first: every question that a run puts to the first is put to the second, and the
two answers agree within E at u = 2^-53, or exactly where nothing is rounded.

    agreement = Agreement([Reference(), OnnxRuntime()])
    with listening(agreement):
        run(cases, session)
    agreement.disagreements
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from opsocket_conformance.second_oracle.answer import Part
from opsocket_conformance.second_oracle.attention import attention
from opsocket_conformance.second_oracle.cache import static_scale, store
from opsocket_conformance.second_oracle.evaluators import Evaluator
from opsocket_conformance.second_oracle.matmul import int8_rows, matmul, quantize_activation
from opsocket_conformance.second_oracle.merge_states import merge_states
from opsocket_conformance.second_oracle.model import add, moe_combine, moe_route, moe_sort, rms_norm, rope, silu_mul
from opsocket_conformance.second_oracle.sampling import argmax, sample
from opsocket_conformance.second_oracle.weights import dequantize

Array = npt.NDArray[Any]

SECOND: Final[Mapping[str, Callable[..., tuple[Part | None, ...]]]] = {
    function.__name__: function
    for function in (
        attention, merge_states, matmul, quantize_activation, int8_rows, dequantize, store, static_scale, rms_norm,
        silu_mul, rope, add, moe_route, moe_sort, moe_combine, argmax, sample,
    )
}  # fmt: skip
"""The first oracle's entry points, by name: each takes an evaluator and the same arguments, and gives one `Part` for
each part of the first's answer, None for one that it has no opinion about."""


@dataclass(frozen=True)
class Disagreement:
    """Where the two answers are further apart than E. evaluator: whose answer is the second."""

    entry: str
    evaluator: str
    text: str

    def __str__(self) -> str:
        return f"{self.entry}, by {self.evaluator}: {self.text}"


@dataclass
class Tally:
    """One entry point. asked: questions, each put to every evaluator. elements: of the first's answers. ratio: the
    worst |first - second| / E, by evaluator."""

    covered: bool
    asked: int = 0
    elements: int = 0
    ratio: dict[str, float] = field(default_factory=dict)
    disagreements: int = 0


class Agreement:
    """A listener at the first oracle's door. `tallies` by entry point; `disagreements` as they were found."""

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self.tallies: dict[str, Tally] = {}
        self.disagreements: list[Disagreement] = []
        self._evaluators = tuple(evaluators)

    @property
    def holds(self) -> bool:
        """There were questions, each was understood, and each answer agreed with."""
        return bool(self.tallies) and not self.disagreements and all(t.covered for t in self.tallies.values())

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        tally = self.tallies.setdefault(name, Tally(covered=name in SECOND))
        tally.asked += 1
        if not tally.covered:
            return
        first = _parts(answer)
        for evaluator in self._evaluators:
            second = SECOND[name](evaluator, *args, **kwargs)
            self._compare(name, tally, evaluator.name, first, second)
        tally.elements += sum(value.size for value in first if value is not None)

    def _compare(
        self,
        name: str,
        tally: Tally,
        evaluator: str,
        first: Sequence[Array | None],
        second: Sequence[Part | None],
    ) -> None:
        worst = tally.ratio.get(evaluator, 0.0)
        for value, part in zip(first, second, strict=True):
            if part is None:
                continue
            ratio, text = _apart(value, part)
            worst = max(worst, ratio)
            if text:
                tally.disagreements += 1
                self.disagreements.append(Disagreement(name, evaluator, f"{part.name}{text}"))
        tally.ratio[evaluator] = worst


def _parts(answer: Any) -> list[Array | None]:
    """The parts of an answer: the fields of a record, the items of a tuple, or the one array."""
    if dataclasses.is_dataclass(answer):
        answer = tuple(getattr(answer, f.name) for f in dataclasses.fields(answer))
    items = answer if isinstance(answer, tuple) else (answer,)
    return [None if item is None else np.asarray(item) for item in items]


def _apart(first: Array | None, part: Part) -> tuple[float, str]:
    """The worst ratio, and what is wrong, "" for nothing. Exact parts stand at 0 or at infinity."""
    second = part.value
    if first is None or second is None:
        return (0.0, "") if first is second else (np.inf, f": one is absent: {first}, {second}")
    if first.shape != second.shape:
        return np.inf, f": shapes {list(first.shape)} and {list(second.shape)}"
    if np.array_equal(first, second):
        return 0.0, ""
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        apart = np.inf if part.bound is None else np.abs(a - b) / (part.bound.total + part.bound.slack)
        ratio = np.where(same, 0.0, apart)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    worst = float(ratio.max())
    if worst <= 1:
        return worst, ""
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    where = ", ".join(map(str, map(int, at)))
    outside = f"{int((ratio > 1).sum())} of {ratio.size} elements"
    return worst, f"[{where}]: first {a[at]:.17g}, second {b[at]:.17g}, ratio {worst:.3g}; {outside} disagree"
