"""What a kernel hands back, checked before anything is computed from it: a slip here should be told in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opsocket.operators import Cache, ContractError, Plan

_PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "attention": ("out", "lse"),
    "merge_states": ("out", "lse"),
    "cache_read": ("k", "v"),
    "quantize_activation": ("codes", "scale"),
    "moe_route": ("weights", "experts"),
    "moe_sort": ("rows", "expert_offsets", "slots"),
}
_NONE: Final = {"attention": ", lse None unless the spec wants one", "cache_read": ", v None for a latent cache"}
"""Where a part may be missing."""
_CACHES: Final = ("cache_write", "cache_move", "cache_copy_blocks")


class WrongReturn(Exception):
    """A kernel returned something of another kind than its operator does."""


def check_returned(plan: Plan, result: Any) -> None:
    """`WrongReturn` unless a kernel's result is of its operator's kind, made of the session's own arrays."""
    op = plan.request.op
    if op in _CACHES:
        if not isinstance(result, Cache):
            raise _wrong(plan, result, "the cache that was written: a Cache")
        return
    parts = _PARTS.get(op, ("y", "x + residual") if getattr(plan.request.spec, "residual", False) else ())
    if not parts:
        _check_array(plan, result, "an array")
        return
    want = f"a tuple ({', '.join(parts)}){_NONE.get(op, '')}"
    if not (isinstance(result, tuple) and len(result) == len(parts)):
        raise _wrong(plan, result, want)
    for part in result:
        if part is not None or op not in _NONE:
            _check_array(plan, part, f"{want} of arrays")


def _check_array(plan: Plan, array: Any, want: str) -> None:
    try:
        plan.session.describe(array)
    except ContractError:
        raise _wrong(plan, array, want) from None


def _wrong(plan: Plan, result: Any, want: str) -> WrongReturn:
    kernel = f"{type(plan).__module__}.{type(plan).__qualname__}"
    return WrongReturn(f"{plan.request.op}: {kernel}._run returned {type(result).__name__}, wanted {want}")
