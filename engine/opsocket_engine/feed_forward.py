"""What a layer computes of each token by itself: a gated MLP, or a mixture of such experts."""

from __future__ import annotations

from opsocket.operators import Array
from opsocket_engine.inputs import Inputs
from opsocket_engine.requests import ExpertsRequests, MlpRequests
from opsocket_engine.weights import Loader


class Mlp:
    """down(silu(gate x) * up x)."""

    def __init__(self, loader: Loader, prefix: str, requests: MlpRequests) -> None:
        self._gate_up = loader.projections(prefix, requests.gate_up)
        self._silu_mul = loader.plans[requests.silu_mul]
        self._down_proj = loader.linear(prefix + "down_proj", "down_proj", requests.down_proj)

    def __call__(self, inputs: Inputs, x: Array) -> Array:
        y, spec = self._gate_up(inputs, x), self._silu_mul.request.spec
        out = inputs.out("silu_mul", spec.dtype, spec.width)
        return self._down_proj(inputs, self._silu_mul.run(y["gate_proj"], y["up_proj"], out=out))


class Experts:
    """The weighted sum of what each token's `top_k` experts, MLPs all of one shape, make of it.

    Rows of tokens are sorted by expert, and multiplied by all experts' weights in one product (Gale et al. 2022,
    "MegaBlocks": nothing is padded, and no token is dropped).
    """

    def __init__(self, loader: Loader, prefix: str, requests: ExpertsRequests) -> None:
        route, each = loader.plans[requests.route], prefix + "experts."
        self._top_k: int = route.request.spec.top_k
        self._router = loader.linear(prefix + "router", "router", requests.router)
        self._route = route
        self._sort = loader.plans[requests.sort]
        self._take = loader.plans[requests.take]
        self._gate_up = loader.experts_projections(each, requests.gate_up, self._top_k)
        self._silu_mul = loader.plans[requests.silu_mul]
        self._down_proj = loader.experts_linear(each, ["down_proj"], requests.down_proj, self._top_k)
        self._combine = loader.plans[requests.combine]

    def __call__(self, inputs: Inputs, x: Array) -> Array:
        weights, experts = self._route.run(self._router(inputs, x))
        rows, expert_offsets, slots = self._sort.run(experts)
        taken, gated, combined = (plan.request.spec for plan in (self._take, self._silu_mul, self._combine))
        of_choice = inputs.out("experts' rows", taken.dtype, taken.width, each=self._top_k)
        y = self._gate_up(inputs, self._take.run(x, rows, out=of_choice), expert_offsets)
        out = inputs.out("silu_mul", gated.dtype, gated.width, each=self._top_k)
        y = self._down_proj(inputs, self._silu_mul.run(y["gate_proj"], y["up_proj"], out=out), expert_offsets)
        return self._combine.run(y, slots, weights, out=inputs.out("combined", combined.dtype, combined.width))
