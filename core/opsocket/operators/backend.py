"""Four nouns, one level each: Backend (a kind of chip) -> Session (one opened device) -> Plan (one prepared operator),
with Providers (libraries of kernels) that a backend orders.

The law: `supports(request)` says yes <=> `plan(request)` succeeds (ResourceError aside) <=> the result agrees with the
oracle. It holds by construction here: both ask `Backend.pick`, and supported means that it picked a kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, NoReturn
from weakref import WeakSet

import numpy as np

from opsocket.operators.capture import Call, CaptureLevel, Graph
from opsocket.operators.contract import Checked
from opsocket.operators.errors import BackendError, ContractError, OpsocketError, PluginError, Reason, Unsupported
from opsocket.operators.ladder import Ladder, VendorCall
from opsocket.operators.layout import CacheLayout, CacheSpec
from opsocket.operators.request import Request, Spec

if TYPE_CHECKING:
    from opsocket.operators.cache import Cache
    from opsocket.operators.matmul import PackedWeight

Array = Any
"""A session's own array: a torch tensor on torch sessions, whatever else on others."""

INTERFACE_VERSION = "1.0"


@dataclass(frozen=True)
class BackendInfo:
    """name: what `--backend` takes. version: the plugin's own. api: the interface versions it was written for, as a
    version specifier such as ">=1.0,<2"."""

    name: str
    version: str
    api: str
    vendor: str


@dataclass(frozen=True)
class DeviceInfo:
    """One device, found without creating a context on it. memory_bytes: what it has in all.

    numerics: what a result on it says of the chip. device: it is the chip. interpreted: the kernels' own source, under
    an interpreter. emulated: the vendor's host code, over code of ours in the chip's place. `auto` takes only "device".
    """

    backend: str
    index: int
    name: str
    arch: str
    memory_bytes: int
    features: tuple[str, ...] = ()
    numerics: Literal["device", "interpreted", "emulated"] = "device"

    @property
    def emulated(self) -> bool:
        """Whether something stands in for the chip."""
        return self.numerics != "device"

    def __str__(self) -> str:
        return f"{self.backend}:{self.index}"


@dataclass(frozen=True)
class Absence:
    """Why a backend has no device here, and what a person can do about it."""

    reason: str
    hint: str


Tier = Literal["native", "composed", "none"]


@dataclass(frozen=True)
class Support:
    """The answer to "can you do this". native: one kernel; composed: several general ones; none: see `reasons`.

    passed_over: for each provider asked before the one that serves, why it does not. capture: with which batches a run
    can be captured and replayed.
    """

    tier: Tier
    provider: str = ""
    reasons: tuple[Reason, ...] = ()
    passed_over: tuple[tuple[str, tuple[Reason, ...]], ...] = ()
    capture: CaptureLevel = "never"

    def __bool__(self) -> bool:
        return self.tier != "none"


class ArrayInfo(NamedTuple):
    """strides are in elements; None: dense, rows first."""

    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    device: str


@dataclass(frozen=True)
class Memory:
    """Bytes on the session's device: what this session's arrays take (None: not counted) and what there is in all."""

    used: int | None
    total: int


@dataclass(frozen=True)
class Limit:
    """What a device can do at most, measured: `per_second` of bytes read from memory ("read"), or of operations on
    numbers of a type ("f32", "int8", "bf16"; a product and its sum are two), on some host threads (0: not a host)."""

    name: str
    unit: Literal["bytes", "operations"]
    threads: int
    per_second: float


class Plan(Checked, ABC):
    """One prepared operator. `plan` may allocate, tune and synchronize; `run` does none of these.

    A kernel is a subclass of one operator's plan class (`AttentionPlan`, `MatmulPlan`, ...) that implements `_run`,
    and `_update` where the operator takes a batch. Core validates before either is called. spec_type: the operator's.
    capture_level: the kernel's own, in a native graph; a `CommandList` takes any kernel.
    """

    spec_type: ClassVar[type[Spec] | None] = None
    batch_type: ClassVar[type | None] = None
    capture_level: ClassVar[CaptureLevel] = "never"
    _sealed = ("run", "update", "launch", "_call", "_again", "_check_room", "_check_level", "spec_type", "batch_type")

    def __init__(self, session: Session, request: Request, provider: str) -> None:
        self.session = session
        self.request = request
        self.provider = provider
        self.batch: Any = None
        self._graphs: WeakSet[Graph] = WeakSet()
        # Content, which a batch and deep checks look at, is no part of what `_repeat` knows.
        self._may_repeat = self.batch_type is None and session.options.checked == "shapes"
        self._setup()

    def _setup(self) -> None:
        """Hook: prepare what depends on the request alone."""

    def _update(self, batch: Any) -> None:
        """Hook: take a validated batch. Writes at stable addresses; no allocation, no synchronization."""

    def _repeat(self, args: tuple[Any, ...]) -> Any:
        """Hook, for speed alone: run at once, with arguments that core has not validated, and return the result.

        args: `_run`'s. None, with nothing done, unless `_run` was called before with arrays of the same shapes, dtypes,
        strides and devices, and with the same objects for whatever is no array: validation would pass as it did then.
        """
        return None

    def _validate_batch(self, batch: Any) -> None:
        """Core's check of a batch on its host arrays; each operator has its own."""

    def _check_room(self, batch: Any, *room: Any) -> None:
        """Core's check of a batch against the arrays of a run, given as what they have room for."""

    def _check_level(self, batch: Any, captured: Any, level: CaptureLevel) -> None:
        """Core's check of a batch against the one that a run was captured with."""

    def update(self, batch: Any) -> None:
        """Give the plan this step's batch. A refused batch leaves the plan as it was.

        What a living graph has recorded of this plan must be able to run with it: `ContractError` where the recorded
        arrays have no room for the batch, or the kernel's capture level does not allow it.
        """
        if self.session.closed:
            raise self.session._closed_error()
        if self.batch_type is None:
            raise ContractError("batch", f"None: {self.request.op} takes no batch", type(batch).__name__)
        if not isinstance(batch, self.batch_type):
            raise ContractError("batch", self.batch_type.__name__, type(batch).__name__)
        if self.session.capturing is not None:
            raise ContractError("batch", "no update under capture: a replay knows one batch of each plan", "an update")
        self._validate_batch(batch)
        for graph in self._graphs:
            for room, captured in graph.limits_of(self):
                self._check_room(batch, *room)
                self._check_level(batch, captured, graph.level(type(self)))
        self._update(batch)
        self.batch = batch

    def _call(
        self,
        kernel: Callable[..., Any],
        *args: Any,
        room: tuple[Any, ...] = (),
        outs: Mapping[str, Array] | None = None,
    ) -> Any:
        """Run the kernel on validated arguments, and have it recorded where the session captures.

        room: what `_check_room` counts in the arrays. outs: the output arrays that `run` could be given, by name.
        """
        if self.session.closed:
            raise self.session._closed_error()
        if self.batch_type is not None:
            if self.batch is None:
                raise ContractError("batch", "plan.update(batch) before run", None)
            self._check_room(self.batch, *room)
        graph = self.session.capturing
        if graph is None:
            return self.launch(kernel, args)
        level = graph.check_run(self, outs or {})
        self._check_level(self.batch, self.batch, level)
        result = self.launch(kernel, args)
        graph.calls.append(Call(self, kernel, args, room, deepcopy(self.batch), result))
        self._graphs.add(graph)
        return result

    def _again(self, *args: Any) -> Any:
        """The result of a run like one before, without validation; None where that is not to be had."""
        session = self.session
        if not self._may_repeat or session.observer is not None or session.capturing is not None or session.closed:
            return None
        return self._repeat(args)

    def launch(self, kernel: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call the kernel: report it to the session's observer, and wrap what it raises of its own."""
        observer = self.session.observer
        try:
            if observer is None:
                return kernel(*args)
            with observer(self):
                return kernel(*args)
        except OpsocketError:
            raise
        except Exception as error:
            raise BackendError(self.request.op, f"{self.session.device}/{self.provider}", error) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.request.op} on {self.session.device} by {self.provider}>"


@dataclass(frozen=True)
class Pick:
    """A kernel that serves a request."""

    plan: type[Plan]
    tier: Tier = "native"


class Provider(Checked, ABC):
    """A library of kernels that a backend can use: a vendor's, a framework's, or our own."""

    name: ClassVar[str]

    @abstractmethod
    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        """The kernel for a request, or every reason why there is none.

        Pure and cheap: no device context, no framework import to say no; it answers for absent devices too.
        """

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        """The layouts that this provider's kernels read and write for a logical cache, preferred first."""
        return ()

    def vendor_calls(self) -> Sequence[VendorCall]:
        """The calls that its kernels make of a library that may be absent, each form once."""
        return ()


def _check_answer(provider: Provider, request: Request, answer: object) -> None:
    """`PluginError` unless a provider's answer is a kernel of the request's operator, or reasons against it."""
    if isinstance(answer, tuple) and answer and all(isinstance(reason, Reason) for reason in answer):
        return
    cause = f"returned {answer!r} where a Pick or a tuple of at least one Reason was wanted"
    if isinstance(answer, Pick):
        plan: object = answer.plan
        if not (isinstance(plan, type) and issubclass(plan, Plan)):
            cause = f"picked {plan!r}, which is no subclass of Plan"
        elif plan.spec_type is not type(request.spec):
            cause = f"picked {plan.__qualname__}, which is no plan of {request.op}"
        elif missing := sorted(getattr(plan, "__abstractmethods__", ())):
            cause = f"picked {plan.__qualname__}, which lacks {', '.join(missing)}"
        else:
            return
    raise PluginError("validated", f"provider {provider.name!r}", f"pick({request.op}) {cause}")


class Backend(Checked, ABC):
    """A kind of chip and how to open one. Construction is cheap and touches no device.

    graph_type: how its sessions, which are `in_place`, capture runs and replay them; None: they can't.
    """

    info: ClassVar[BackendInfo]
    graph_type: ClassVar[type[Graph] | None] = None
    _sealed = ("pick", "supports")

    @abstractmethod
    def devices(self) -> Sequence[DeviceInfo]:
        """The devices present, best first. Creates no device context; imports no framework to say "none"."""

    @abstractmethod
    def providers(self) -> Sequence[Provider]:
        """The providers installed here, in the order in which they are asked."""

    @abstractmethod
    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        """A session on one of `devices()`."""

    def absence(self) -> Absence:
        """Why `devices()` is empty; asked only then."""
        return Absence("no device found", "")

    def notes(self) -> Sequence[str]:
        """What a person should know of how it works here, a line each: `opsocket doctor` shows them."""
        return ()

    def ladder(self) -> Ladder | None:
        """How its kernels are verified where the chip is absent; None: they are not."""
        return None

    def pick(
        self,
        device: DeviceInfo,
        request: Request,
        pins: Mapping[str, str] | None = None,
        tuned: Mapping[str, str] | None = None,
    ) -> tuple[Support, type[Plan] | None]:
        """The one place that chooses a kernel. pins: operator -> the only provider that may serve it. tuned: what was
        measured to be fastest here, `Request.work` -> the provider that is asked first."""
        pinned = (pins or {}).get(request.op)
        providers = [p for p in self.providers() if pinned in (None, p.name)]
        first = tuned.get(request.work) if tuned else None
        providers.sort(key=lambda provider: provider.name != first)
        if not providers:
            names = [p.name for p in self.providers()]
            return Support("none", reasons=(Reason("provider", f"operators.{request.op}", pinned, names),)), None
        passed_over: list[tuple[str, tuple[Reason, ...]]] = []
        for provider in providers:
            answer = provider.pick(device, request)
            _check_answer(provider, request, answer)
            if isinstance(answer, Pick):
                capture = "never" if self.graph_type is None else self.graph_type.level(answer.plan)
                return Support(answer.tier, provider.name, (), tuple(passed_over), capture), answer.plan
            passed_over.append((provider.name, answer))
        reasons = dict.fromkeys(reason for _, rs in passed_over for reason in rs)
        # That another library has no such operator at all is no news where one has it and says what is in the way.
        telling = tuple(reason for reason in reasons if reason.field != "op") or tuple(reasons)
        return Support("none", "", telling, tuple(passed_over)), None

    def supports(
        self,
        device: DeviceInfo,
        request: Request,
        pins: Mapping[str, str] | None = None,
        tuned: Mapping[str, str] | None = None,
    ) -> Support:
        """Whether and by which provider a request is served. Pure: `device` need not be present."""
        return self.pick(device, request, pins, tuned)[0]


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

    def capture(self) -> Graph:
        """`with session.capture() as graph:` records the runs inside; `Unsupported` where the session can't.

        Every output that a run in the block can be given (`out=`) is given, and no plan is updated there.
        `supports(request).capture` says with which batches a request's runs can be captured.
        """
        if self.backend.graph_type is None or not self.in_place:
            reason = Reason("capture", "capture", "never", f"a backend whose sessions capture; {self.device} has none")
            raise Unsupported([reason], backend=str(self.device))
        return self.backend.graph_type(self)

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
