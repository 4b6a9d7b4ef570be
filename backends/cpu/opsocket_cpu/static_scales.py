"""What the static scales of two caches have to do with each other."""

from __future__ import annotations

import torch

from opsocket.operators import Cache, ContractError


def check_same_scales(src: Cache, dst: Cache) -> None:
    """Codes mean the same on both sides only under the same static scales."""
    for name in ("k_scale", "v_scale"):
        ours, theirs = getattr(src, name), getattr(dst, name)
        if ours is not theirs and not torch.equal(ours, theirs):
            raise ContractError(f"dst.{name}", "the static scales of src: codes are copied as they are", "others")
