"""Routing of tokens to experts: softmax, the largest k, ties to the lower index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from opsocket.operators import (
    MoERouteSpec,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Case
from opsocket_conformance.findings import Float64
from opsocket_conformance.floats import round_to
from opsocket_conformance.guard import judge_only
from opsocket_conformance.operators.activations import DTYPES, ActivationCheck
from opsocket_conformance.tolerance import (
    U_EXP,
    Bound,
    U,
    bound,
    growth,
)


@dataclass(frozen=True)
class MoERoute(ActivationCheck):
    """experts, k, renormalize: as in `MoERouteSpec`. x: "normal", "ties": equal logits, "peaky": one far above;
    "far": hundreds apart, beyond exp's range; "close": near each other, but not for f32."""

    name: ClassVar[str] = "moe_route"
    experts: int = 23
    k: int = 4
    renormalize: bool = True
    x: str = "normal"

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        plan = bench.plan(Request(MoERouteSpec(self.experts, self.k, self.renormalize, self.dtype)))
        # Distinct logits are far enough apart for f32 probabilities to keep their order.
        drawn = [rng.permutation(self.experts) for _ in range(self.t)]
        steps = np.array(drawn, np.float64).reshape(self.t, self.experts)
        if self.x == "ties":
            steps //= 3
        logits = steps / 8 - 1
        if self.x == "far":
            logits[:, ::3] += 100
            logits[:, 1::3] -= 150
        if self.x == "close":
            logits = 1 + steps * (2.0**-7 if self.dtype == "bf16" else 2.0**-10)
        if self.x == "peaky":
            logits[:, self.experts // 2] += 30
        given = round_to(logits, self.dtype)
        weights, experts = bench.run(plan, bench.put("logits", given, self.dtype))
        exact = given.astype(np.float64)
        want, chosen = moe_route(exact, self.k, self.renormalize)
        bench.same("experts", bench.get(experts).astype(np.int64), chosen)
        bench.compare("weights", bench.get(weights), want, tolerance(want, exact), biased=False)


Int64 = npt.NDArray[np.int64]


@judge_only
def moe_route(logits: Float64, top_k: int, renormalize: bool) -> tuple[Float64, Int64]:
    """weights f64[T, top_k] in falling order, experts i64[T, top_k]; ties to the lower index."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share = weights / weights.sum(axis=-1, keepdims=True)
    experts = np.argsort(-logits, axis=-1, kind="stable")[:, :top_k]
    chosen = np.take_along_axis(share, experts, axis=-1)
    if renormalize:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return chosen, experts.astype(np.int64)


def tolerance(ref: Float64, logits: Float64) -> Bound:
    """f32 probabilities over the last dimension of `logits`."""
    reach = np.abs(logits).max(axis=-1, keepdims=True, initial=0.0)
    relative = U_EXP["exact"] + (growth(logits.shape[-1]) + 3) * U + 4 * U * reach
    return bound(ref, relative * ref, "f32")


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for x in ("normal", "ties", "peaky", "far", "close"):
            for experts, k, renormalize in ((23, 4, True), (8, 2, False), (128, 8, True), (5, 5, False), (3, 1, True)):
                check = MoERoute(7, dtype, experts, k, renormalize, x)
                yield Case(check, 0, "smoke" if (experts, x) == (23, "normal") else "default")
