"""At least one case per precondition of every operator."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.preconditions.breaches import BREACHES
from opsocket_conformance.preconditions.negative import Negative


def cases() -> Iterator[Case]:
    for call, breaches in BREACHES.items():
        for number, breach in enumerate(breaches):
            for dtype in DTYPES:
                yield Case(Negative(call, breach, dtype), 0, "smoke" if number == 0 and dtype == "bf16" else "default")
