"""Watches what a torch kernel does: work off its device, and whatever makes the host wait for the device.

Where a session's arrays lie on the host itself there is nothing to tell apart, and nothing is watched. Operations are
seen as torch dispatches them. Below that, a device is believed that counts for itself: one whose module (as
`torch.cuda` is of "cuda") has a function `host_accesses(device)`, how often by kind this thread has read from the
device, written to it, and waited for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

_INDEXED: Final = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index")
_forgiven: ContextVar[Counter[str] | None] = ContextVar("forgiven", default=None)
"""What the watch that runs is to leave out of the device's own count; None where none runs, or it looks away."""


@contextmanager
def watching(array: Any) -> Iterator[list[str]]:
    """Gives a list that fills with what was done off the device of `array`, one of the session's own, or waited for it.

    Scalars (0-dimensional host tensors) are parameters, not data, and are left alone.
    """
    seen: list[str] = []
    if _on_the_host(array):
        yield seen
        return

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    device, forgiven = array.device, Counter[str]()

    class Watcher(TorchDispatchMode):  # type: ignore[misc]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Or torch imports its compiler for the sake of a kernel that no one compiles: 1.5 s."""
            return False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if _forgiven.get() is None:
                return func(*args, **kwargs)
            name = str(func.overloadpacket)
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            if any(tensor.device == device for tensor in inputs) and (why := _waits(func, name, args, kwargs)):
                seen.append(f"{name}: the host {why} {device}, and waits for it")
                return func(*args, **kwargs)
            result = func(*args, **kwargs)
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
            seen.extend(f"{name} on {t.device}" for t in (*inputs, *outputs) if t.dim() and t.device != device)
            return result

    def _waits(func: Any, name: str, args: Any, kwargs: Any) -> str:
        if torch.Tag.data_dependent_output in func.tags:
            return "reads from"
        if name in _INDEXED:
            is_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            return "needs a shape that depends on content of" if is_mask else ""
        if torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
            return "needs a shape that depends on content of"
        return ""

    before, token = host_accesses(array), _forgiven.set(forgiven)
    try:
        with Watcher():
            yield seen
    finally:
        _forgiven.reset(token)
        counted = host_accesses(array) - before - forgiven
        if not seen:
            seen.extend(f"{device} counted {number} {kind} by the host" for kind, number in sorted(counted.items()))


@contextmanager
def looking_away(array: Any) -> Iterator[None]:
    """Inside a `watching`: what is done here is not the kernel's doing."""
    forgiven = _forgiven.get()
    if forgiven is None:
        yield
        return
    before, token = host_accesses(array), _forgiven.set(None)
    try:
        yield
    finally:
        _forgiven.reset(token)
        forgiven.update(host_accesses(array) - before)


def host_accesses(array: Any) -> Counter[str]:
    """How often this thread has accessed the device of `array` from the host, by kind; empty where nobody counts."""
    return Counter(_of_module(array, "host_accesses"))


def allocations(array: Any) -> int | None:
    """How often memory was taken on the device of `array` since the process began; None where nobody counts."""
    return _of_module(array, "memory_stats").get("allocation.all.allocated")


def _on_the_host(array: Any) -> bool:
    device = getattr(array, "device", None)
    return not type(array).__module__.startswith("torch") or getattr(device, "type", "cpu") == "cpu"


def _of_module(array: Any, function: str) -> dict[str, int]:
    """What a function of a torch device's module counts; empty where it has none."""
    if _on_the_host(array):
        return {}
    import torch

    module = getattr(torch, array.device.type, None)
    counts: dict[str, int] = getattr(module, function)(array.device) if hasattr(module, function) else {}
    return counts
