"""What goes wrong in the routing of tokens to experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import Float64, recomputed, rounded
from opsocket_conformance.power.orders import Int64, falling, falling_ties_high, over_all

Step = Callable[..., Any]


def _same(value: Any, *others: Any) -> Any:
    return value


def route(
    *,
    given: Step = _same,
    softmax: Step = lambda logits, spec: over_all(logits),
    order: Step = falling,
    chosen: Step = lambda share, spec: share / share.sum(-1, keepdims=True) if spec.renormalize else share,
    last: Step = lambda weights, experts: (weights, experts),
) -> Hook:
    """The right routing in float64, each step of which can be replaced."""

    def compute(plan: Any, logits: Float64) -> tuple[Float64, Int64]:
        spec = plan.request.spec
        logits = given(logits)
        experts = order(logits)[:, : spec.top_k]
        share = np.take_along_axis(softmax(logits, spec), experts, axis=-1)
        weights, experts = last(chosen(share, spec), experts)
        return weights, experts.astype(np.int64)

    return recomputed(compute)


def _route_fault(name: str, wrong: str, run: Hook, where: Any = None) -> Fault:
    hooks = {} if where is None else {"where": where}
    return Fault("moe_route", name=f"moe_route: {name}", category="sampling", wrong=wrong, run=run, **hooks)


def _sigmoids(logits: Float64, spec: Any) -> Float64:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _without_a_maximum(logits: Float64, spec: Any) -> Float64:
    weights = np.exp(logits.astype(np.float32)).astype(np.float64)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def _over_the_chosen(logits: Float64, spec: Any) -> Float64:
    kept = np.where(np.argsort(falling(logits), axis=-1) < spec.top_k, logits, -np.inf)
    weights = np.exp(kept - kept.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def _below_64(logits: Float64) -> Float64:
    return np.where(np.arange(logits.shape[-1]) < 64, logits, -1e30)


def _fewer_than_all(request: Request) -> bool:
    spec: Any = request.spec
    return bool(spec.top_k < spec.num_experts)


def _as_is(request: Request) -> bool:
    return not getattr(request.spec, "renormalize", True) and _fewer_than_all(request)


def _renormalized(request: Request) -> bool:
    return bool(getattr(request.spec, "renormalize", False)) and _fewer_than_all(request)


FAULTS: Final[tuple[Fault, ...]] = (
    _route_fault("ties to the higher index", "a comparison with >=", route(order=falling_ties_high)),
    _route_fault("rising order", "the smallest weight first", route(last=lambda w, e: (w[:, ::-1], e[:, ::-1]))),
    _route_fault(
        "order by index",
        "a mask instead of a list",
        route(last=lambda w, e: (np.take_along_axis(w, np.argsort(e), 1), np.sort(e))),
    ),
    _route_fault("the smallest experts", "sorted the wrong way", route(order=lambda logits: falling(-logits))),
    _route_fault(
        "renormalized unasked",
        "always sums to 1",
        route(chosen=lambda share, spec: share / share.sum(-1, keepdims=True)),
        _as_is,
    ),
    _route_fault(
        "never renormalized", "the flag is not looked at", route(chosen=lambda share, spec: share), _renormalized
    ),
    _route_fault(
        "renormalized by one expert too few",
        "a sum of k - 1",
        route(chosen=lambda share, spec: share / np.maximum(share[:, :-1].sum(-1, keepdims=True), 1e-9)),
        lambda r: _renormalized(r) and r.spec.top_k > 1,
    ),
    _route_fault(
        "softmax over the chosen",
        "top-k first",
        route(softmax=_over_the_chosen, chosen=lambda share, spec: share),
        _as_is,
    ),
    _route_fault("sigmoid", "as other models route", route(softmax=_sigmoids)),
    _route_fault(
        "softmax in bf16",
        "probabilities in the activations' type",
        route(softmax=lambda logits, s: rounded(over_all(logits), "bf16")),
    ),
    _route_fault(
        "softmax in f16", "probabilities in f16", route(softmax=lambda logits, s: rounded(over_all(logits), "f16"))
    ),
    _route_fault("no maximum subtracted", "exp overflows", route(softmax=_without_a_maximum)),
    _route_fault("experts beyond 64 ignored", "one bit each of a 64-bit word", route(given=_below_64)),
    _route_fault(
        "last expert ignored",
        "E - 1",
        route(given=lambda logits: np.where(np.arange(logits.shape[-1]) < logits.shape[-1] - 1, logits, -1e30)),
        _fewer_than_all,
    ),
    _route_fault(
        "logits in bf16", "rounded before they are compared", route(given=lambda logits: rounded(logits, "bf16"))
    ),
    _route_fault(
        "the neighbour's weights", "the row's index is one off", route(last=lambda w, e: (np.roll(w, 1, axis=0), e))
    ),
    _route_fault("experts counted from 1", "one off", route(last=lambda w, e: (w, e + 1))),
)
