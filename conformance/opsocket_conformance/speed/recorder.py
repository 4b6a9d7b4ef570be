"""The calls of a case, kept so that they can be made again: on the arrays they had, or on copies elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from opsocket.operators import (
    BlockPairs,
    Cache,
    CacheCopyBlocksSpec,
    CacheLayout,
    CacheSpec,
    PackedWeight,
    Ragged,
    Request,
)
from opsocket_conformance.bench import Bench
from opsocket_conformance.findings import Host
from opsocket_conformance.speed.moved import bytes_moved, nbytes
from opsocket_conformance.speed.timing import Call

_OUTPUTS = ("out", "lse_out")


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run of a plan with a batch. moved: the bytes that it has to move at the least."""

    plan: Any
    batch: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    moved: int

    def call(self) -> Call:
        """The run again; the batch is given to the plan here, and not each time."""
        if self.batch is not None:
            self.plan.update(self.batch)
        return partial(self.plan.run, *self.args, **self.kwargs)


@dataclass(eq=False, kw_only=True)
class Recorder(Bench):
    """A bench that keeps the run of one operator that moves the most bytes."""

    operator: str
    recorded: Recorded | None = None
    _scales: dict[tuple[CacheSpec, CacheLayout], tuple[Host | None, Host | None]] = field(default_factory=dict)
    _copying: dict[Request, Any] = field(default_factory=dict)
    _weights: list[tuple[PackedWeight, Request, Mapping[str, Host]]] = field(default_factory=list)

    def run(self, plan: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().run(plan, *args, **kwargs)
        if plan.request.op == self.operator:
            moved = bytes_moved(self.session, plan, args, kwargs, result)
            if self.recorded is None or moved > self.recorded.moved:
                self.recorded = Recorded(plan, plan.batch, args, kwargs, moved)
        return result

    def prepare(self, plan: Any, tensors: Mapping[str, Host]) -> Any:
        packed = super().prepare(plan, tensors)
        self._weights.append((packed, plan.request, tensors))
        return packed

    def allocate(
        self, cache: CacheSpec, layout: int = 0, k_scale: Host | None = None, v_scale: Host | None = None
    ) -> Cache:
        made = super().allocate(cache, layout, k_scale, v_scale)
        self._scales[made.spec, made.layout] = k_scale, v_scale
        return made

    def copy(self, recorded: Recorded) -> Recorded:
        """The same run on arrays of its own. `Unsupported` or `ResourceError` where the session can't make them."""
        known: dict[int, Any] = {}
        args = tuple(self._copy(value, known) for value in recorded.args)
        kwargs = {
            name: self._fresh(value) if name in _OUTPUTS else self._copy(value, known)
            for name, value in recorded.kwargs.items()
        }
        return Recorded(recorded.plan, recorded.batch, args, kwargs, recorded.moved)

    def footprint(self, recorded: Recorded) -> int:
        """Bytes that a copy takes."""
        values = {id(value): value for value in (*recorded.args, *recorded.kwargs.values())}.values()
        return sum(self._size(value) for value in values)

    def _size(self, value: Any) -> int:
        if isinstance(value, Cache):
            return value.layout.bytes_per_block * value.spec.num_blocks
        return nbytes(self.session, value)

    def _copy(self, value: Any, known: dict[int, Any]) -> Any:
        """known: copies by the identity of what they are of, so that a cache moved within itself stays one."""
        if value is None:
            return None
        if id(value) not in known:
            known[id(value)] = self._copied(value, known)
        return known[id(value)]

    def _copied(self, value: Any, known: dict[int, Any]) -> Any:
        if isinstance(value, Ragged):
            return Ragged(self._copy(value.k, known), self._copy(value.v, known))
        if isinstance(value, tuple | list):
            return [self._copy(part, known) for part in value]
        if isinstance(value, PackedWeight):
            request, tensors = next((r, t) for packed, r, t in self._weights if packed is value)
            return self.session.prepare_weight(request, tensors)
        if isinstance(value, Cache):
            return self._copied_cache(value)
        return self.session.upload(self.session.download(value), self.session.describe(value).dtype)

    def _copied_cache(self, cache: Cache) -> Cache:
        """By `cache_copy_blocks`, which knows every layout."""
        every = np.arange(cache.spec.num_blocks, dtype=np.int64)
        k_scale, v_scale = self._scales[cache.spec, cache.layout]
        request = Request(CacheCopyBlocksSpec(), cache.spec, cache.layout)
        if request not in self._copying:
            self._copying[request] = self.session.plan(request, BlockPairs(np.stack([every, every], axis=1)))
        plan: Any = self._copying[request]
        made: Cache = plan.run(cache, self.session.allocate_cache(cache.spec, cache.layout, k_scale, v_scale))
        return made

    def _fresh(self, given: Any) -> Any:
        """An output, written to once, so that no page of it is made while time is taken."""
        if given is None:
            return None
        info = self.session.describe(given)
        zeros = np.zeros(info.shape, np.int64 if info.dtype.startswith("i") else np.float32)
        return self.session.upload(zeros, info.dtype)
