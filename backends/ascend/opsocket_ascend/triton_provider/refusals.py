"""What this provider's kernels do not do, as reasons. Imports no framework: a "no" must be cheap."""

from __future__ import annotations

from typing import Final

from opsocket.operators import CacheSpec, MergeStatesSpec, MoERouteSpec, Reason, Request
from opsocket_ascend import layouts
from opsocket_ascend.triton_provider.tiles import MOST_CHANNELS
from opsocket_triton.model import refusals as model

FEWEST_EXPERTS: Final = 3


def cache_write(request: Request) -> tuple[Reason, ...]:
    """Codes of both: floats as they are are the vendor's operator's."""
    assert request.cache is not None
    formats = (("k", request.cache.k), ("v", request.cache.v))
    reasons = tuple(
        Reason("kv_format", f"cache.{name}.code", fmt.code, ["i8"]) for name, fmt in formats if fmt and fmt.code != "i8"
    )
    return reasons + _cache(request.cache)


def cache_read(request: Request) -> tuple[Reason, ...]:
    assert request.cache is not None
    return _cache(request.cache)


def _cache(cache: CacheSpec) -> tuple[Reason, ...]:
    reasons = []
    if layouts.rotary_channels(cache):
        reasons.append(
            Reason("kind", "cache.kind", "latent", "pages of k and v: a latent's rotary key is a plane of its own")
        )
    for name in ("k", "v"):
        reasons += _channels(f"cache.head_dim_{name}", getattr(cache, f"head_dim_{name}"))
    return tuple(reasons)


def merge_states(request: Request) -> tuple[Reason, ...]:
    assert isinstance(request.spec, MergeStatesSpec)
    return tuple(_channels("head_dim", request.spec.head_dim))


def moe_route(request: Request) -> tuple[Reason, ...]:
    """Fewer experts than the kernel has tiles for: of one or two it takes more rows at once than the chip holds."""
    assert isinstance(request.spec, MoERouteSpec)
    got = request.spec.num_experts
    few = (Reason("num_experts", "num_experts", got, f"at least {FEWEST_EXPERTS}"),) if got < FEWEST_EXPERTS else ()
    return few + model.moe_route(request)


def _channels(field: str, count: int) -> list[Reason]:
    return [Reason("head_dim", field, count, f"at most {MOST_CHANNELS}")] if count > MOST_CHANNELS else []
