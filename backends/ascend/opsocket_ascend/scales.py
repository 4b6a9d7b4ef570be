"""Static scales of caches: on the device, and known on the host without asking it."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from opsocket.operators import Cache, ContractError, Session

_on_host = WeakTensorKeyDictionary()


def put(session: Session, values: np.ndarray | None) -> torch.Tensor | None:
    """A static scale on the session's device."""
    if values is None:
        return None
    scale: torch.Tensor = session.upload(values)
    _on_host[scale] = values
    return scale


def check_same(src: Cache, dst: Cache) -> None:
    """Codes mean the same on both sides only under the same static scales."""
    for name in ("k_scale", "v_scale"):
        ours, theirs = getattr(src, name), getattr(dst, name)
        if ours is not theirs and not np.array_equal(_on_host[ours], _on_host[theirs]):
            raise ContractError(f"dst.{name}", "the static scales of src: codes are copied as they are", "others")
