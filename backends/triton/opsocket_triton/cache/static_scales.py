"""Caches that remember their static scales on the host, so that comparing two of them asks nothing of the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opsocket.operators import Cache, ContractError


@dataclass(frozen=True, eq=False)
class PagedCache(Cache):
    """host_scales: of K and V as they were given to `allocate_cache`; None where a format has none."""

    host_scales: tuple[np.ndarray | None, np.ndarray | None] = (None, None)


def check_same_scales(src: Cache, dst: Cache) -> None:
    """Codes mean the same on both sides only under the same static scales."""
    for name, cache in (("src", src), ("dst", dst)):
        if not isinstance(cache, PagedCache):
            raise ContractError(name, "a cache that a session of this backend allocated", type(cache).__name__)
    assert isinstance(src, PagedCache)
    assert isinstance(dst, PagedCache)
    for name, ours, theirs in zip(("k", "v"), src.host_scales, dst.host_scales, strict=True):
        if ours is not theirs and not np.array_equal(ours, theirs):  # type: ignore[arg-type]
            want = "the static scales of src: codes are copied as they are"
            raise ContractError(f"dst.{name}_scale", want, "others")
