"""A session: one opened device, and the arrays, caches, weights and plans that live there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NoReturn

import numpy as np

from opsocket.operators.capture import check_rows
from opsocket.operators.contract import Checked
from opsocket.operators.device import Array, ArrayInfo, DeviceInfo, Limit, Memory
from opsocket.operators.errors import ContractError, Reason, Unsupported
from opsocket.operators.layout import CacheLayout, CacheSpec
from opsocket.operators.request import Request

if TYPE_CHECKING:
    from opsocket.operators.backend import Backend, Support
    from opsocket.operators.cache import Cache
    from opsocket.operators.capture import Graph
    from opsocket.operators.matmul import PackedWeight
    from opsocket.operators.plan import Plan


@dataclass(frozen=True)
class SessionOptions:
    """pins: operator -> provider. threads: host threads, None = the backend's choice. tuned: see `Backend.pick`.

    checked: "shapes" validates what the host knows; "deep" also reads what only the device knows, and synchronizes.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    checked: Literal["shapes", "deep"] = "shapes"
    tuned: Mapping[str, str] = field(default_factory=dict)


_MAKERS: Final = ("plan", "prepare_weight", "capture", "allocate_cache", "empty", "upload", "write")
"""What a closed session refuses. Its own attributes stand before these methods then: that costs an open one nothing."""


def _closed_error(device: str) -> ContractError:
    return ContractError("session", f"{device} open", "a closed session")


def _refuse_closed(device: str, *args: Any, **kwargs: Any) -> NoReturn:
    raise _closed_error(device)


class Session(Checked, ABC):
    """One opened device: arrays, caches, weights and plans that live there. Not shared between threads.

    array_type: the class of the arrays that operators take and return. in_place: whether `out=` and cache updates
    happen in the arrays given (operators return them in any case). capturing: the graph being recorded, if any. closed:
    whether `close` was called; what makes something, and every run, update and replay, is a `ContractError` then.
    """

    array_type: ClassVar[type]
    in_place: ClassVar[bool] = True
    capturing: Graph | None = None
    rows: Mapping[int, int] | None = None
    closed: bool = False
    _sealed = ("plan", "supports", "capture", "prepare_weight", "cache_layouts", "close")

    def __init__(self, backend: Backend, device: DeviceInfo, options: SessionOptions) -> None:
        self.backend = backend
        self.device = device
        self.options = options
        self.observer: Callable[[Plan], Any] | None = None
        """Called with a plan as its kernel starts; returns a context manager, left when it has been enqueued."""

    def supports(self, request: Request) -> Support:
        return self.backend.supports(self.device, request, self.options.pins, self.options.tuned)

    def plan(self, request: Request, batch: Any = None) -> Plan:
        """Prepare a request; one plan serves every layer of the same spec. `Unsupported` with `supports`' reasons."""
        support, kernel = self.backend.pick(self.device, request, self.options.pins, self.options.tuned)
        if kernel is None:
            raise Unsupported(support.reasons, request=request, backend=str(self.device))
        plan = kernel(self, request, support.provider)
        if batch is not None:
            plan.update(batch)
        return plan

    def capture(self, rows: Mapping[int, int] | None = None) -> Graph:
        """`with session.capture() as graph:` records the runs inside; `Unsupported` where the session can't.

        Every output that a run in the block can be given (`out=`) is given, and no plan is updated there.
        `supports(request).capture` says with which batches a request's runs can be captured.

        rows: how many rows to run, by how many the arrays have: with {512: 20} what is run on arrays of 512 rows is run
        on their first 20, and a replay may be of any other number. Other rows keep what they held. What a plan's batch
        says stays as it is. `Unsupported` where a kind of graph or a kernel (`any_rows`) can't.
        """
        if self.backend.graph_type is None or not self.in_place:
            reason = Reason("capture", "capture", "never", f"a backend whose sessions capture; {self.device} has none")
            raise Unsupported([reason], backend=str(self.device))
        graph = self.backend.graph_type(self)
        if rows:
            if not graph.any_rows:
                reason = Reason("capture", "rows", "as recorded", "a backend whose graphs have `any_rows`")
                raise Unsupported([reason], backend=str(self.device))
            check_rows(rows)
            graph.rows = dict(rows)
        return graph

    def prepare_weight(self, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        """A weight in the layout of the kernel that serves `request` (matmul, grouped_matmul, embedding); at load.

        tensors: host arrays as `request.spec.weight_format` names and shapes them. The result is owned by the caller.
        """
        support, kernel = self.backend.pick(self.device, request, self.options.pins, self.options.tuned)
        if kernel is None:
            raise Unsupported(support.reasons, request=request, backend=str(self.device))
        prepare = getattr(kernel, "prepare_weight", None)
        if prepare is None:
            raise ContractError("request", "an operator that takes a packed weight", request.op)
        packed: PackedWeight = prepare(self, request, tensors)
        return packed

    def cache_layouts(self, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        """The layouts in which this session can hold a cache, preferred first; empty: it can't."""
        found = (layout for p in self.backend.providers() for layout in p.layouts(self.device, cache))
        return tuple(dict.fromkeys(found))

    @abstractmethod
    def allocate_cache(
        self,
        cache: CacheSpec,
        layout: CacheLayout | None = None,
        k_scale: np.ndarray | None = None,
        v_scale: np.ndarray | None = None,
    ) -> Cache:
        """Storage for one layer's cache. Static scales: f32, tensor [1], head [Hkv], channel [Hkv, D].

        `Unsupported` where no layout holds the spec, `ResourceError` where memory does not suffice.
        """

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """An array of undefined content."""

    @abstractmethod
    def upload(self, array: np.ndarray, dtype: str | None = None) -> Array:
        """A host array on the device, as `dtype` (its own when None). bf16 and f8 are given as f32 values, rounded to
        nearest even, or as raw bits by a same-size unsigned array."""

    @abstractmethod
    def download(self, array: Array) -> np.ndarray:
        """A host copy; bf16 and f8 come as f32, exactly."""

    @abstractmethod
    def write(self, array: Array, values: np.ndarray) -> Array:
        """Host values into the leading rows of a device array, at its address where `in_place`; returns the array."""

    @abstractmethod
    def view(self, array: Array, shape: Sequence[int]) -> Array:
        """The same elements under another shape; moves no bytes."""

    def leading(self, array: Array, rows: int) -> Array:
        """The first rows of an array; moves no bytes."""
        return array[:rows]

    @abstractmethod
    def split(self, array: Array, sizes: Sequence[int]) -> tuple[Array, ...]:
        """An array's columns, cut along the last dimension into neighbours of these sizes; moves no bytes, so that the
        parts keep the array's strides. `ContractError` where the sizes do not add up to that dimension."""

    @abstractmethod
    def describe(self, array: Array) -> ArrayInfo:
        """Shape, dtype, strides and device of one of this session's arrays; `ContractError` for any other object."""

    def _dense_shape(self, array: Array, dtype: str) -> tuple[int, ...] | None:
        """Hook, for speed alone: the shape of an array of this session that has this dtype and is dense throughout.

        None for all else and where in doubt: `describe` is asked then. Each run asks this of each of its arrays.
        """
        return None

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything enqueued has finished."""

    @abstractmethod
    def memory(self) -> Memory:
        """The device's memory."""

    def limits(self) -> tuple[Limit, ...]:
        """What the device can do at most, measured now (seconds); empty where the backend has no way to tell."""
        return ()

    def close(self) -> None:
        """Give back what the session holds. Closing again does nothing."""
        if self.closed:
            return
        self.closed = True
        for name in _MAKERS:
            setattr(self, name, partial(_refuse_closed, str(self.device)))
        self._close()

    def _close(self) -> None:
        """Hook: give back what the session holds; called once."""

    def _closed_error(self) -> ContractError:
        return _closed_error(str(self.device))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
