"""Watches what a torch kernel does: work off its device, and reads by the host that stall the device's queue.

Where a session's arrays lie on the host itself there is nothing to tell apart, and nothing is watched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_READS_BY_THE_HOST = ("aten._local_scalar_dense", "aten.item")


@contextmanager
def watching(array: Any) -> Iterator[list[str]]:
    """Gives a list that fills with what was done off the device of `array`, one of the session's own.

    Scalars (0-dimensional host tensors) are parameters, not data, and are left alone.
    """
    seen: list[str] = []
    device = getattr(array, "device", None)
    if not type(array).__module__.startswith("torch") or getattr(device, "type", "cpu") == "cpu":
        yield seen
        return

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watcher(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func.overloadpacket)
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if name in _READS_BY_THE_HOST and any(tensor.device == device for tensor in inputs):
                seen.append(f"{name}: the host reads from {device}, and waits for it")
                return func(*args, **(kwargs or {}))
            result = func(*args, **(kwargs or {}))
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            seen.extend(f"{name} on {t.device}" for t in (*inputs, *outputs) if t.dim() and t.device != device)
            return result

    with Watcher():
        yield seen
