"""One recorded call, with random numbers in its arrays and poison in every slot that it does not name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opsocket.operators import ContractError
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.traffic.recorded import recorded_calls
from opsocket_conformance.traffic.replay import REPLAYS


@dataclass(frozen=True)
class Traffic(Check):
    """n: number of the call in the recording. dtype: of activations and cache."""

    name: ClassVar[str] = "traffic"
    shown: ClassVar[tuple[str, ...]] = ("n", "dtype")

    n: int = 0
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        if not 0 <= self.n < len(recorded_calls()):
            raise ContractError("case.n", f"0 to {len(recorded_calls()) - 1}", self.n)

    @property
    def operator(self) -> str:
        return recorded_calls()[self.n].op

    def features(self) -> frozenset[str]:
        """Those of a decoder in one type; logits in f32 are part of it, and no feature of their own."""
        spec = recorded_calls()[self.n].request(self.dtype).spec
        needs = {f"op:{self.operator}", f"dtype:{self.dtype}"}
        if spec.uses_cache != "never":
            needs.add("cache:same")
        weight = getattr(spec, "weight_format", None)
        return frozenset(needs | ({f"weight:{weight}"} if weight else set()))

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        call = recorded_calls()[self.n]
        REPLAYS[call.op](bench, rng, call, call.request(self.dtype))


def cases() -> Iterator[Case]:
    for number in range(len(recorded_calls())):
        for dtype in DTYPES:
            yield Case(Traffic(number, dtype))
